"""What an idle system costs: CPU time by program, and commands by server."""

"""The cost of an idle system: CPU time by program, and commands by server."""

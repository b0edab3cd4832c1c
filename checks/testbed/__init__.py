"""What judges and tests run Sluice with: its processes, clocks that step, several hosts, a pooler, a raw connection."""

"""What the judges and the tests both run Sluice with: its processes, clocks that step, a pooler, a raw connection."""

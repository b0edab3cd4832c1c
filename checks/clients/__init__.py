"""Real, unchanged clients in other languages send to a test Sluice: it must store each of their events once."""

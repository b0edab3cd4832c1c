"""What a rate of events takes: processes, cores, sessions, memory and disk, from measured costs (docs/sizing.md)."""

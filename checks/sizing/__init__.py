"""The needs of a rate of events: processes, cores, sessions, memory and disk, from measured costs (docs/sizing.md)."""

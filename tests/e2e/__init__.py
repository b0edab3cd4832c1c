"""The end-to-end tests: a running system on each event log."""

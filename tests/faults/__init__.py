"""The tests of the fault harness (checks/soak), and its short run on each event log."""

"""The command `sluice`: the commands for people who run Sluice, under one name."""

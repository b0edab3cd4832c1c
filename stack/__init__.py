"""Private servers and processes for a machine that has none: what run.sh and test.sh start."""

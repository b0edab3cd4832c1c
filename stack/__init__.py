"""Private servers and processes for a machine that has none: run.sh and test.sh start them."""

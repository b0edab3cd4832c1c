"""The load test: a scenario with a verdict for each of its phases."""

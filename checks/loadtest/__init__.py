"""The load test: a story with a verdict for each of its phases."""

"""The judges of the whole system, one package each, and their shared load generators and testbed."""

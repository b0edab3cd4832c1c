"""The judges of the whole system, one package each, and what they share: load generators and the testbed."""

"""The simulator: the shipped control loop, bucket and leases on virtual time, around a simulated sink and clients."""

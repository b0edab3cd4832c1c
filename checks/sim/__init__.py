"""The simulator: the shipped control loop, bucket and leases on virtual time, with a simulated sink and clients."""

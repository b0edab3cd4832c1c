"""Load generators: an open loop, a closed loop and a steady rate. They know nothing of the judges."""

"""Load generators: an open loop, a closed loop and a steady rate; and a PostgreSQL that stores a known rate.

They know nothing of the judges.
"""

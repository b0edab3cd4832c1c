"""Load generators: an open loop, a closed loop and a steady rate; a PostgreSQL that stores a known rate; the live page;
a proxy that breaks connections.

They know nothing of the judges.
"""

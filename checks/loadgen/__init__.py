"""Load generators: an open loop, a closed loop and a steady rate; a PostgreSQL that stores a known rate; the live page.

They know nothing of the judges.
"""

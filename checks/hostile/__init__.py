"""Hostile input: what hostile.sh and tests/hostile send to ingest, and how they judge what comes back."""

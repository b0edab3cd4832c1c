"""Sink adapters: PostgreSQL, memory."""

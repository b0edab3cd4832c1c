"""Runs the whole system under faults, keeps a history of the answers to clients, and compares it with stored events."""

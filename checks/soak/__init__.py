"""Runs the whole system under faults, keeps a history of what clients were told, and judges it by what was stored."""

"""Runbooks acted out: a scenario creates the condition on a running system, and the steps of its page end it."""

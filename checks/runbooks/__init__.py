"""Runbooks acted out: the condition is made on a running system, and the steps of its page end it."""

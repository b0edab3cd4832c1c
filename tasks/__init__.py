"""Celery tasks: hints to drain, the control loop and the prober."""

"""The core of Sluice: the event log, the drain, the sink and the control loop, without web server or task queue."""

__version__ = "0.2.0"  # the same as in pyproject.toml and CHANGELOG.md; a test compares them

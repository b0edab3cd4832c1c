"""The core of Sluice: the event log, the drain, the sink and the control loop, free of web server and task queue."""

__version__ = "0.1.0"  # that of pyproject.toml and CHANGELOG.md; a test compares

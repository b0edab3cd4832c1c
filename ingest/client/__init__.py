"""The command that sends events from files: `python -m ingest.client`."""

"""What Python SDKs do with events that their server does not accept: `python -m checks.client_sdks`."""

"""What Python SDKs do with events when their server does not take them: `python -m checks.client_sdks`."""

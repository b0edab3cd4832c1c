"""`python -m ingest.client FILE…`: the command `sluice send` of the Python client, for the system of this checkout.

The address is INGEST_URL, or else that of the running system; the API key is INGEST_KEY. All else is in
`sluice_client.command`.
"""

import argparse
import sys

from pipeline.errors import SettingsError
from pipeline.settings import Settings
from sluice_client.command import add_send_arguments, send


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ingest.client", description="Send events from NDJSON files.")
    add_send_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        settings = Settings.for_commands()
    except SettingsError as error:
        sys.stderr.write(f"client: {error}\n")
        return 2
    url = settings.ingest_url or f"{settings.ingest_scheme}://{settings.ingest_host}:{settings.ingest_port}"
    headers = {"Authorization": f"Bearer {settings.ingest_key}"} if settings.ingest_key else None
    return send(parsed, url, headers=headers)

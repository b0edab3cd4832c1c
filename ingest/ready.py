"""`python -m ingest.ready`: whether the ingest of this machine is ready; for the health checks of containers.

The exit status is 0 if `GET /readyz` answers 200 at INGEST_HOST and INGEST_PORT, else 1 with the reason. If INGEST_HOST
stands for all addresses, it asks the loopback address. Where clients need a certificate, it asks OPERATOR_PORT instead.
"""

import http.client
import ssl
import sys
from typing import Final

from pipeline.errors import SettingsError
from pipeline.settings import Settings

SECONDS_MAX: Final = 2.0


def main() -> int:
    """Ask once. Returns the exit status."""
    try:
        settings = Settings.from_environ()
    except SettingsError as error:
        sys.stdout.write(f"not ready: {error}\n")
        return 1
    host, port = settings.ingest_host, settings.ingest_port
    if settings.ingest_tls_client == "required":
        host, port = settings.operator_host, settings.operator_port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # asked
    connection: http.client.HTTPConnection
    if settings.ingest_tls_cert:
        # The certificate is for another name than the loopback address.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=SECONDS_MAX, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS_MAX)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        shown = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"not ready: {settings.ingest_scheme}://{shown}:{port}/readyz: {error}\n")
        return 1
    finally:
        connection.close()
    if answer.status != 200:
        sys.stdout.write(f"not ready: {answer.status} {text}\n")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

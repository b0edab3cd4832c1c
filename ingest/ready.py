"""`python -m ingest.ready`: whether the ingest of this machine is ready; for the health checks of containers.

The exit status is 0 if `GET /readyz` answers 200 at INGEST_HOST and INGEST_PORT, else 1 with the reason. If INGEST_HOST
stands for all addresses, it asks the loopback address. Where clients need a certificate, it asks OPERATOR_PORT instead.
"""

import http.client
import ssl
import sys
from typing import Final
from urllib.parse import urlsplit

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
    url = settings.ready_url()
    place = urlsplit(url)
    host, port = place.hostname or "", place.port
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
        connection.request("GET", place.path)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"not ready: {url}: {error}\n")
        return 1
    finally:
        connection.close()
    if answer.status != 200:
        sys.stdout.write(f"not ready: {answer.status} {text}\n")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())

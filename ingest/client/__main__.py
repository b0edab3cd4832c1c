"""`python -m ingest.client`; see `ingest.client.send`."""

import sys

from ingest.client.send import main

if __name__ == "__main__":
    sys.exit(main())

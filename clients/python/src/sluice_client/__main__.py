"""`python -m sluice_client` is the command `sluice`."""

import sys

from sluice_client.command import main

if __name__ == "__main__":
    sys.exit(main())

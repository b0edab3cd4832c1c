#!/usr/bin/env bash
# Tells the whole story of a load, from normal through a backlog and an outage to recovery, and judges it.
# ./load-test.sh --help says more.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_setup requirements-servers.txt requirements-dev.txt
cd "$ROOT"
exec .venv/bin/python -m loadtest "$@"

#!/usr/bin/env bash
# Runs a complete load scenario, from normal through a backlog and an outage to recovery, and judges the result.
# See ./load-test.sh --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_help checks.loadtest.options "$@"
sluice_setup requirements-servers.txt requirements-dev.txt
cd "$ROOT"
exec .venv/bin/python -m checks.loadtest "$@"

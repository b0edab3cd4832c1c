#!/usr/bin/env bash
# Sends Sluice hostile input of every kind, and judges the results. See ./hostile.sh --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_help checks.hostile.arguments "$@"
sluice_setup requirements-servers.txt requirements-dev.txt
# The fuzzer has ready packages for some machines only. Elsewhere its part is skipped, with a message.
(PIP_ONLY_BINARY=:all: sluice_setup requirements-fuzz.txt) || echo "hostile.sh: there will be no fuzzing" >&2
export PYTHONPATH="$ROOT"
exec "$ROOT/.venv/bin/python" -m checks.hostile "$@"

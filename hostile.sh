#!/usr/bin/env bash
# Sends Sluice hostile input of every kind, and judges what comes of it. ./hostile.sh --help says more.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_setup requirements-servers.txt requirements-dev.txt
# There are ready packages of the fuzzer for some machines only; elsewhere its part is skipped, and says so.
(PIP_ONLY_BINARY=:all: sluice_setup requirements-fuzz.txt) || echo "hostile.sh: there will be no fuzzing" >&2
export PYTHONPATH="$ROOT:$ROOT/tests"
exec "$ROOT/.venv/bin/python" -m support.hostile "$@"

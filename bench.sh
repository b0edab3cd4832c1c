#!/usr/bin/env bash
# Measures Sluice against baselines of the same run: one table of ratios with their goals. See ./bench.sh --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_help checks.bench.arguments "$@"
sluice_setup requirements-servers.txt requirements-dev.txt
cd "$ROOT"
exec .venv/bin/python -m checks.bench "$@"

#!/usr/bin/env bash
# Set-up, linters and all tests. ./test.sh unit runs the quick ones; further arguments go to pytest.
set -euo pipefail
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    printf '%s\n' './test.sh                  linters and all tests' \
        './test.sh unit             linters and the tests that need no server' \
        './test.sh -k drain -x      further arguments go to pytest'
    exit 0
fi
ROOT=$(cd -- "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
. "$ROOT/stack/setup.sh"
sluice_setup requirements-servers.txt requirements-dev.txt
cd "$ROOT"
export PATH="$ROOT/.venv/bin:$PATH"

if [ "$#" -eq 0 ] && command -v mvn >/dev/null 2>&1; then
    # Maven downloads Kafka the first time. The tests on Kafka wait for that, and say why where it fails.
    python -c 'from stack.servers import resolve_kafka; resolve_kafka()' >/dev/null 2>&1 &
fi
if [ "$#" -eq 0 ] || [ "$1" = "unit" ]; then
    ruff format --check --quiet . || { echo "ruff format would change files: .venv/bin/ruff format ." >&2; exit 1; }
    ruff check --quiet .
    # A cold mypy takes a minute on one processor: it runs beside what follows, and reports as soon as it finds something.
    { mypy >.local/mypy.log 2>&1 || { cat .local/mypy.log >&2; exit 1; }; } &
    types=$!
    trap 'kill "$types" 2>/dev/null || true' EXIT
    lint-imports --no-cache >/dev/null || lint-imports --no-cache
    (cd clients/python/src && { lint-imports --no-cache --config ../pyproject.toml >/dev/null ||
        lint-imports --no-cache --config ../pyproject.toml; })
    # The control maths is pure: the tests must cover every branch.
    coverage run --branch --source=pipeline/flow -m pytest -q --no-header tests/unit/test_flow_*.py tests/property/test_flow_*.py
    coverage report --fail-under=100
fi
if [ "${1:-}" = "unit" ]; then
    shift
    set -- tests/unit tests/property "$@"
fi
# Three at a time, grouped by the servers that they share: a test waits a third of its time (docs/adr/tests.md).
parallel=(-n 3 --dist loadscope --no-loadscope-reorder)
for argument in "$@"; do
    case "$argument" in -n* | --pdb | -x) parallel=() ;; esac
done
status=0
pytest --durations=10 "${parallel[@]}" "$@" || status=$?
if [ -n "${types:-}" ] && ! wait "$types"; then
    cat .local/mypy.log >&2
    echo "test.sh: mypy found the problems above" >&2
    status=1
fi
exit "$status"

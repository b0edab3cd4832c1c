# Sourced by run.sh, test.sh and bench.sh: makes .venv with the pinned packages, or finds it as it should be.
# In: ROOT, the checkout. Nothing is changed outside of it.

sluice_die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

sluice_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

# sluice_setup FILE...: requirement files to install. Takes under a second where they are installed already.
sluice_setup() {
    local python wanted
    mkdir -p "$ROOT/.local"
    exec 9>"$ROOT/.local/setup.lock"
    if command -v flock >/dev/null 2>&1; then
        flock 9
    fi
    # Two starts at once must not install into each other; a system that runs is not in the way.
    wanted=$(cd "$ROOT" && cat "$@" requirements.txt constraints.txt stack/setup.sh | cksum)" $*"
    if [ "$(cat "$ROOT/.venv/installed" 2>/dev/null)" != "$wanted" ]; then
        if [ ! -x "$ROOT/.venv/bin/python" ] || ! "$ROOT/.venv/bin/python" -c 'import pip' 2>/dev/null; then
            python=$(sluice_python) ||
                sluice_die "needs Python 3.11 to 3.13 with venv (Debian: python3 and python3-venv), and found none"
            echo "making .venv with $python …"
            rm -rf "$ROOT/.venv"
            "$python" -m venv "$ROOT/.venv" || sluice_die "$python -m venv failed"
        fi
        echo "installing packages …"
        # shellcheck disable=SC2046
        (cd "$ROOT" && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
            $(printf -- '-r %s ' "$@")) || sluice_die "the packages could not be installed (pip said why, above)"
        printf '%s' "$wanted" >"$ROOT/.venv/installed"
    fi
    exec 9>&-
}

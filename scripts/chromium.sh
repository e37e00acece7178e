#!/bin/sh
# Make sure that there is a Chromium for tests/report.  Usage: scripts/chromium.sh
#
# Where one is there, nothing is done. On Debian and Ubuntu it is installed with apt, by root or through a sudo that asks no
# password; elsewhere this says what to do. Exit status: 0 there is one, 1 there is none.
set -eu

say() { printf 'paperlab: %s\n' "$*" >&2; }

find_browser() {
    for name in chromium chromium-browser google-chrome chrome; do
        command -v "$name" && return
    done
    return 1
}

if find_browser >/dev/null; then
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || {
    say "no Chromium here, and no apt-get to install it with: put chromium on PATH; until then tests/report skips its browser tests."
    exit 1
}
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || {
        say "no Chromium here: sudo apt-get install chromium; until then tests/report skips its browser tests."
        exit 1
    }
    as_root="sudo -n"
fi
say "installing Chromium."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $as_root apt-get update -qq &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    say "apt could not install chromium; tests/report skips its browser tests."
    exit 1
fi
find_browser >/dev/null || { say "apt installed chromium, but it is not on PATH."; exit 1; }

#!/bin/sh
# Makes .venv what uv.lock says, on a machine that has Python 3.11 and nothing else. The Makefile runs this whenever
# the lock file is newer than the environment; it may be run by hand at any time. It talks on standard error only.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.current
tools=.local/tools

say() { printf '%s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# A Python that is new enough, the plain name first: it is the one that people mean.
find_python() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later is needed and was not found. Install it (Debian: apt-get install python3), then try again."
}

# `python3 -m venv` needs ensurepip, which Debian ships apart.
need_venv() {
    if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then return; fi
    version=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null 2>&1 || fail "$python has no venv module. Install it with this system's package tool."
    [ "$(id -u)" = 0 ] || fail "$python has no venv module. Run \`sudo apt-get install $version\`, then try again."
    say "Installing $version with apt; this happens once."
    { ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1 && apt_install "$version"; } ||
        { apt_get update && apt_install "$version"; } ||
        fail "apt could not install $version; its own messages are above. Mend that, then try again."
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -qq -y "$@" </dev/null >&2; }
apt_install() { apt_get install --no-install-recommends "$1"; }

# uv from PATH, else from a small environment of its own.
find_uv() {
    if command -v uv >/dev/null 2>&1; then command -v uv; return; fi
    if [ ! -x "$tools/bin/uv" ]; then
        need_venv
        say "Fetching uv into $tools; this happens once."
        rm -rf "$tools"
        "$python" -m venv "$tools" >&2 && "$tools/bin/python" -m pip install -qq --disable-pip-version-check uv >&2 ||
            { rm -rf "$tools"; fail "uv could not be installed; pip's own messages are above. Mend that, then try again."; }
    fi
    echo "$tools/bin/uv"
}

sync() {
    [ "$stamp" -nt uv.lock ] && [ "$stamp" -nt pyproject.toml ] && return
    python=$(find_python)
    uv=$(find_uv)
    # An environment that works keeps its Python; only a new one is made with the one found here.
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || set -- --python "$python"
    say "Bringing .venv into step with uv.lock."
    UV_PYTHON_DOWNLOADS=never "$uv" sync --frozen --quiet "$@" >&2 ||
        fail "uv could not install what uv.lock names; its own messages are above. Mend that, then try again."
    touch "$stamp"
}

# Two commands at once must not both write the environment.
mkdir -p .local
if command -v flock >/dev/null 2>&1; then
    exec 9>.local/bootstrap.lock
    flock -n 9 || { say "Another command is preparing .venv. Waiting for it."; flock 9; }
fi
sync

#!/bin/sh
# Looks up every locked version among the known vulnerabilities (pip-audit), looks for secrets in the history, and writes
# the bill of materials. Needs PyPI itself: a mirror that only hands out packages cannot answer, and then this says so
# and fails. What needs no network is in tests/security/test_supply_chain.py and runs with the other tests.
set -eu
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .local/tools/bin/uv)
out=.local/audit
mkdir -p "$out"

"$uv" export --quiet --frozen --all-groups --no-emit-project --format requirements.txt --output-file "$out/requirements.txt" >/dev/null
sh scripts/sbom.sh

# Values that only real secrets have; the tests' own are shorter or say what they are.
pattern='sk_live_[A-Za-z0-9]{24,}|rk_live_[A-Za-z0-9]{24,}|whsec_[A-Za-z0-9]{32}|sk-(proj|ant)-[A-Za-z0-9_-]{40,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|-----BEGIN [A-Z ]*PRIVATE KEY-----.{40}'
if git log --all --patch --no-color | grep -E '^[+-]' | grep -E -m 5 -- "$pattern"; then
    echo "The history holds what looks like a secret; see above." >&2
    exit 1
fi
echo "No secret in the history."

# --strict: what could not be looked up is a failure and not a pass.
if "$uv" tool run --quiet --from pip-audit==2.10.1 pip-audit --strict --require-hashes --disable-pip --requirement "$out/requirements.txt" \
    --progress-spinner off >"$out/pip-audit.txt" 2>&1; then
    tail -n 1 "$out/pip-audit.txt"
elif grep -q -e 'could not be audited' -e 'Dependency not found' -e 'NameResolutionError' -e 'ConnectionError' "$out/pip-audit.txt"; then
    echo "NOT AUDITED: no database of vulnerabilities can be reached from here. Details: $out/pip-audit.txt" >&2
    exit 2
else
    cat "$out/pip-audit.txt" >&2
    exit 1
fi

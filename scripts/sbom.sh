#!/bin/sh
# Writes the CycloneDX bill of materials of what the images hold: every package that uv.lock names for them, by hash.
set -eu
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .local/tools/bin/uv)
out=${1:-.local/audit/sbom.cdx.json}
mkdir -p "$(dirname "$out")"
"$uv" export --quiet --frozen --no-dev --group gateway --group billing --group agents --group ops \
    --format cyclonedx1.5 --preview-features sbom-export --output-file "$out" >/dev/null
echo "Bill of materials: $out"

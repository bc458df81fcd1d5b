"""What is looked for in an answer before its reader acts on it: secrets, and commands that destroy. Pure.

It warns and changes nothing: the reader decides, and a false alarm must not cost an answer.
"""

import re
from collections.abc import Sequence
from typing import Final

from services.agents.runs.domain import OutputWarning

_SECRETS: Final[Sequence[re.Pattern[str]]] = tuple(
    re.compile(pattern)
    for pattern in (
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
        r"\bAKIA[0-9A-Z]{16}\b",
        r"\bgh[pousr]_[A-Za-z0-9]{36,}",
        r"\bglpat-[A-Za-z0-9_\-]{20,}",
        r"\b(?:sk|rk)_live_[A-Za-z0-9]{16,}",
        r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_\-]{32,}",
        r"\bxox[abprs]-[A-Za-z0-9\-]{10,}",
        r"\b[a-z][a-z0-9+]{2,}://[^\s/:@]+:[^\s/:@]{6,}@[\w.\-]+",
    )
)
_DANGERS: Final[Sequence[tuple[re.Pattern[str], str]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), detail)
    for pattern, detail in (
        (r"\brm\s+(?:-\w*\s+)*-\w*[rf]\w*\s+(?:-\w+\s+)*(?:/|~|\$HOME|\*)(?:\s|$|\*)", "It deletes files recursively."),
        (r"\bdd\s[^\n]*\bof=/dev/\w+|\bmkfs\.\w+\s", "It overwrites a disk."),
        (r":\(\)\s*\{\s*:\s*\|\s*:\s*&\s*\}\s*;\s*:", "It exhausts the machine's processes."),
        (r"\b(?:curl|wget)\s[^\n|]*\|\s*(?:sudo\s+)?(?:ba|z)?sh\b", "It runs what it downloads, unseen."),
        (r"\bDROP\s+(?:DATABASE|SCHEMA|TABLE)\b|\bTRUNCATE\s+TABLE\b", "It deletes tables or databases."),
        (r"\bDELETE\s+FROM\s+[\w.\"]+\s*;", "It deletes all rows of a table."),
        (r"\bgit\s+push\s[^\n]*(?:--force\b(?!-with-lease)|\s-f\b)", "It overwrites the history of a repository."),
        (r"\bchmod\s+(?:-R\s+)?0?777\b", "It lets everybody write files."),
        (r"\beval\s*\(\s*(?:request|input|params|req\.)", "It runs what a stranger sends."),
    )
)


def check_output(text: str) -> tuple[OutputWarning, ...]:
    warnings: list[OutputWarning] = []
    if any(pattern.search(text) for pattern in _SECRETS):
        detail = "The answer contains something that looks like a secret. Do not publish it; revoke it if it is real."
        warnings.append(OutputWarning(code="agents.output_secret", detail=detail))
    for pattern, detail in _DANGERS:
        if pattern.search(text):
            advice = f"The answer contains a dangerous command or statement: {detail} Read it twice before running it."
            warnings.append(OutputWarning(code="agents.output_dangerous", detail=advice))
    return tuple(warnings)

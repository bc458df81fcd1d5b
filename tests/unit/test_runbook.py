"""Every health check leads to a section of the runbook that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "RUNBOOK.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_checks_runbook_section_exists() -> None:
    named = {
        (path.relative_to(ROOT), section)
        for folder in ("services", "libs")
        for path in (ROOT / folder).rglob("*.py")
        for section in re.findall(r'runbook="([^"]+)"', path.read_text(encoding="utf-8"))
    }
    assert named
    missing = {(str(path), section) for path, section in named if section not in anchors()}
    assert not missing

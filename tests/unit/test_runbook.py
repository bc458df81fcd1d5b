"""Every check and alert leads to a section of the runbook, and nothing of the former runbook is left out."""

import re
from pathlib import Path

import pytest

from ops.venture.__main__ import build_app
from tests.harness.runbook import RUNBOOK, read_blocks, statements

ROOT = Path(__file__).parents[2]
SEED = ROOT.parent / "shared" / "seed" / "operator-runbook.md"


def anchors() -> set[str]:
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_named_section_exists() -> None:
    named = {
        (path.relative_to(ROOT), section)
        for folder in ("services", "libs", "ops")
        for path in (ROOT / folder).rglob("*.py")
        for section in re.findall(r'(?:runbook="|Runbook: |section = ")([a-z-]+)', path.read_text(encoding="utf-8"))
    }
    named |= {
        (path.relative_to(ROOT), section)
        for path in (ROOT / "deploy").rglob("*.yaml")
        for section in re.findall(r"runbook: ([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert named
    missing = {(str(path), section) for path, section in named if section not in anchors()}
    assert not missing


def test_every_link_inside_the_runbook_leads_somewhere() -> None:
    linked = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK.read_text(encoding="utf-8")))
    assert linked <= anchors()


def test_a_block_that_is_not_run_says_why() -> None:
    assert all(block.language in {"sh", "sql"} for block in read_blocks())
    assert [block.line for block in read_blocks() if block.not_run and len(block.not_run) < 20] == []


def test_every_command_of_the_command_line_is_in_the_runbook() -> None:
    import typer  # noqa: PLC0415

    text = RUNBOOK.read_text(encoding="utf-8")
    root = typer.main.get_command(build_app())
    paths: list[str] = []

    def collect(command: object, path: str) -> None:
        inner: dict[str, object] = getattr(command, "commands", {})
        if not inner:
            paths.append(path)
        for name, one in inner.items():
            collect(one, f"{path} {name}")

    collect(root, "venture")
    named_beside_others = {"venture check mail", "venture check queues"}
    missing = [path for path in paths if path not in text and path not in named_beside_others]
    assert not missing


@pytest.mark.skipif(not SEED.exists(), reason="the former runbook is not beside this checkout")
def test_every_statement_of_the_former_runbook_is_here_word_for_word() -> None:
    ours = {one for block in read_blocks() if block.language == "sql" for one in statements(block.text)}
    theirs = [one for block in read_blocks(SEED) if block.language == "sql" for one in statements(block.text)]
    assert theirs
    assert [statement for statement in theirs if statement not in ours] == []


@pytest.mark.skipif(not SEED.exists(), reason="the former runbook is not beside this checkout")
def test_every_section_of_the_former_runbook_has_its_place() -> None:
    table = RUNBOOK.read_text(encoding="utf-8").partition("### From the former runbook")[2].lower()
    headings = re.findall(r"^### (?:Issue: )?(.+)$", SEED.read_text(encoding="utf-8"), re.MULTILINE)
    general = (
        "checklist, key metrics to monitor, common stripe issues, internal contacts, external services, "
        "emergency contacts, useful commands, environment variables reference, disable feature"
    )
    missing = [name for name in headings if name.lower() not in table and name.lower() not in general]
    assert not missing

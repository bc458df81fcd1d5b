"""`python -m ops.house_rules [FILE...]`: check these files, or all of the project's, and exit 1 on any finding."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ops.house_rules.exceptions import EXCEPTIONS
from ops.house_rules.rules import RULES
from ops.house_rules.source import Finding, Source
from ops.house_rules.sql import explained_locks_in_migration

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = ("libs", "services", "ops", "devkit", "tests", "bench", "deploy")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.house_rules", description="Check the house rules.")
    parser.add_argument("files", nargs="*", type=Path, help="files to check; without any, all of the project's")
    chosen: list[Path] = parser.parse_args(argv).files
    files = [path.resolve() for path in chosen] or list(project_files())
    found = [finding for path in files for finding in check_file(path)]
    excused = {_key(finding) for finding in found} & EXCEPTIONS.keys()
    broken = [finding for finding in found if _key(finding) not in excused]
    stale = [] if chosen else sorted(EXCEPTIONS.keys() - excused)
    for finding in broken:
        print(finding)
    for rule, path, subject in stale:
        print(f"ops/house_rules/exceptions.py: nothing needs the exception from {rule} for {path} {subject}".rstrip())
    print(f"House rules: {len(files)} files, {len(RULES)} rules, {len(broken) + len(stale)} findings.")
    return 1 if broken or stale else 0


def project_files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted((ROOT / "migrations").glob("*.sql"))


def check_file(path: Path) -> Iterator[Finding]:
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        yield from explained_locks_in_migration(name, text)
    elif path.suffix == ".py":
        yield from check_source(Source(name, text))


def check_source(source: Source) -> Iterator[Finding]:
    for rule in RULES:
        yield from rule(source)


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.rule, finding.path, finding.subject


if __name__ == "__main__":
    sys.exit(main())

"""A comparison as Markdown, JSON and pictures, with the machine, its load and the commit it was made on.

Every run leaves both under `bench/reports`; the table and the picture of the last one also replace the part of
docs/PERFORMANCE.md that stands between the marks of its name.
"""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import plots
from bench.frame import OURS, Report, Results
from libs.common.clock import system_clock

ROOT: Final = Path(__file__).parents[1]
REPORTS: Final = ROOT / "bench" / "reports"
DOCUMENT: Final = ROOT / "docs" / "PERFORMANCE.md"
IMAGES: Final = ROOT / "docs" / "img"


def publish(report: Report) -> None:
    """Print the table, keep the report, and bring the document up to date."""
    REPORTS.mkdir(exist_ok=True)
    place = conditions(report.results)
    body = as_markdown(report, place)
    print(f"\n{body}")
    (REPORTS / f"{report.name}.md").write_text(f"# {report.title}\n\n{body}", encoding="utf-8")
    kept = {**asdict(report), "conditions": place}
    (REPORTS / f"{report.name}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    picture = f"bench-{report.name}.svg"
    (IMAGES / picture).write_text(plots.bars(report), encoding="utf-8")
    put_into_document(report.name, f"{body}\n![{report.title}](img/{picture})\n")


def conditions(results: Results) -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return {
        "measured_at": system_clock().strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory[1]) / 1024**2) if memory else None,
        "python": platform.python_version(),
        "load": f"{results.loads[0]:.1f} before, {results.loads[-1]:.1f} after",
        "took_s": round(results.took_s),
    }


def as_markdown(report: Report, place: dict[str, Any]) -> str:
    results = report.results
    titles = ["", *(column.title for column in report.columns)]
    lines = [report.how, "", f"| {' | '.join(titles)} |", f"|---|{'---:|' * len(report.columns)}"]
    for name in results.rounds:
        cells = [f"**{name}**" if name.startswith(OURS) else name]
        for column in report.columns:
            spread = results.spread(name, column.name)
            if spread is None:
                cells.append("")
            elif spread.least == spread.most:
                cells.append(column.tell(spread.median))
            else:
                cells.append(f"{column.tell(spread.median)} ({column.tell(spread.least)}–{column.tell(spread.most)})")  # noqa: RUF001
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {'met' if it.is_met else '**missed**'}: {it.text}: {it.seen}" for it in report.targets)]
    lines += [f"- {note}" for note in report.notes]
    rounds = max(len(it) for it in results.rounds.values())
    lines += [
        "",
        (
            f"Medians (least–most) of {rounds} rounds in turns; ratios are medians of the rounds' ratios. "  # noqa: RUF001
            f"{place['measured_at']}, commit {place['commit']}, {place['processor']}, {place['cores']} cores, "
            f"Python {place['python']}, load {place['load']}."
        ),
        "",
    ]
    return "\n".join(lines)


def put_into_document(name: str, text: str) -> None:
    """Replace what stands between this name's marks; a document without them is left alone."""
    document = DOCUMENT.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    DOCUMENT.write_text(marks.sub(lambda found: f"{found[1]}{text}{found[2]}", document), encoding="utf-8")


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "libs", "services", "bench/*.py", "bench/peers")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")

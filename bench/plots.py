"""Pictures of comparisons as SVG, drawn by hand: bars side by side, and lines over a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from bench.frame import OURS, Report

_WIDTH: Final = 760
_LABELS: Final = 190
_ROW: Final = 26
_INK: Final = "#24292f"
_FAINT: Final = "#8c959f"
_OURS: Final = "#1a7f5a"
_THEIRS: Final = "#9fb3c8"
_LINES: Final = ("#1a7f5a", "#0969da", "#bf5700", "#8250df", "#cf222e", "#57606a")


def bars(report: Report) -> str:
    """A block of bars for each column by which they can be compared; whiskers are least and most of the rounds."""
    drawn: list[str] = []
    y = 34
    for column in report.columns:
        rows = {name: it for name in report.results.rounds if (it := report.results.spread(name, column.name))}
        if len(rows) < 2:  # noqa: PLR2004 - one alone is no comparison
            continue
        drawn.append(_text(12, y + 12, column.title, weight="600"))
        y += 22
        longest = max(it.most for it in rows.values()) or 1
        scale = (_WIDTH - _LABELS - 110) / longest
        for name, spread in rows.items():
            length = max(spread.median * scale, 1)
            colour = _OURS if name.startswith(OURS) else _THEIRS
            middle = y + _ROW / 2
            drawn += [
                _text(_LABELS - 8, middle + 4, name, anchor="end"),
                f'<rect x="{_LABELS}" y="{y + 4}" width="{length:.1f}" height="{_ROW - 8}" rx="2" fill="{colour}"/>',
                (
                    f'<path d="M{_LABELS + spread.least * scale:.1f} {middle}H{_LABELS + spread.most * scale:.1f}" '
                    f'stroke="{_INK}" stroke-width="1.5"/>'
                ),
                _text(_LABELS + spread.most * scale + 8, middle + 4, column.tell(spread.median)),
            ]
            y += _ROW
        y += 12
    return _document(report.title, drawn, height=y + 6)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x_title: str, y_title: str) -> str:
    """Values over powers of ten, the vertical axis from nought."""
    left, top, width, height = 60, 40, _WIDTH - 260, 260
    xs = [math.log10(x) for points in series.values() for x, _ in points]
    most = max(y for points in series.values() for _, y in points) * 1.1 or 1
    first, last = min(xs), max(*xs, min(xs) + 1)

    def at(x: float, y: float) -> str:
        across = left + (math.log10(x) - first) / (last - first) * width
        return f"{across:.1f},{top + height - y / most * height:.1f}"

    drawn = [f'<path d="M{left} {top}V{top + height}H{left + width}" stroke="{_FAINT}" fill="none"/>']
    for step in range(5):
        y = most * step / 4
        drawn.append(_text(left - 6, top + height - step / 4 * height + 4, f"{y:,.3g}", anchor="end"))
    for power in range(math.ceil(first), math.floor(last) + 1):
        across = left + (power - first) / (last - first) * width
        drawn.append(_text(across, top + height + 18, f"{10**power:,}", anchor="middle"))
    for number, (name, points) in enumerate(series.items()):
        colour = _LINES[number % len(_LINES)]
        path = " ".join(at(x, y) for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [
            f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in path.split()
        ]
        legend_y = top + 14 + number * 20
        drawn.append(f'<rect x="{left + width + 20}" y="{legend_y - 9}" width="10" height="10" fill="{colour}"/>')
        drawn.append(_text(left + width + 36, legend_y, name))
    drawn.append(_text(left + width / 2, top + height + 38, x_title, anchor="middle"))
    drawn.append(_text(left, top - 8, y_title))
    return _document(title, drawn, height=top + height + 52)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{_INK}">'
        f"{escape(text)}</text>"
    )


def _document(title: str, drawn: Sequence[str], *, height: float) -> str:
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
                f'font-family="system-ui, sans-serif" font-size="12" role="img">'
            ),
            f"<title>{escape(title)}</title>",
            f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
            _text(12, 20, title, weight="700"),
            *drawn,
            "</svg>\n",
        ]
    )

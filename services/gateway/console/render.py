"""Templates into answers: everything escaped, nothing inline, nothing from elsewhere, nothing kept by caches."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import orjson
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from libs.common.clock import Clock
from libs.common.redaction import redact
from services.gateway.console.charts import HEIGHT, WIDTH
from services.gateway.console.domain import measured, plain_name
from services.gateway.console.door import Entrant

STATIC: Final = Path(__file__).parent / "static"
# `same-origin`: with no referrer at all, browsers would name no origin for our own forms either.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# What an act did, told once on the page one lands on. `n` is a number and nothing else.
DONE: Final[Mapping[str, str]] = {
    "replayed": "Sent back to the queue: {n}.",
    "discarded": "Discarded: {n}.",
    "event_replayed": "What the event is about is being fetched from Stripe again ({n} object).",
    "reconciling": "The comparison with Stripe has begun; its result appears here.",
    "user_changed": "Changed. It takes effect everywhere within 5 s.",
    "usage_reset": "This period's usage is given back.",
    "granted": "Granted.",
    "deleted": "Deleted here; the other services are erasing their part.",
    "run_cancelled": "The run is being cancelled.",
    "closed": "Closed, in every replica within 2 s.",
    "opened": "Open again.",
}
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class View:
    def __init__(self, *, clock: Clock, environment: str, version: str) -> None:
        self._clock = clock
        self.static = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.is_file()}
        digest = hashlib.sha256(b"".join(self.static[name] for name in sorted(self.static))).hexdigest()[:12]
        self._templates = Environment(
            loader=PackageLoader("services.gateway.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        names = cast("dict[str, Any]", self._templates.globals)  # jinja types them by what it puts there itself
        names.update(environment=environment, version=version, digest=digest, width=WIDTH, height=HEIGHT)
        filters = cast("dict[str, Any]", self._templates.filters)
        filters.update(ago=self._ago, stamp=_stamp, number=_number, pretty=_pretty, short=_short)
        filters.update(plain=plain_name, measured=measured)

    def page(self, template: str, request: Request, *, status: int = 200, **values: Any) -> Response:
        entrant: Entrant | None = getattr(request.state, "entrant", None)
        return HTMLResponse(
            self.fragment(template, me=entrant, flash=_flash(request), path=request.url.path, **values),
            status,
            HEADERS,
        )

    def fragment(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)

    def _ago(self, value: datetime | str | None) -> str:
        """Roughly how long ago, or in how long."""
        if value is None:
            return "never"
        seconds = (self._clock() - _instant(value)).total_seconds()
        size, unit = next(((size, unit) for size, unit in _UNITS if abs(seconds) >= size), (1, "s"))
        amount = f"{int(abs(seconds) // size)} {unit}"
        return f"{amount} ago" if seconds >= 0 else f"in {amount}"


def to(path: str, did: str = "", *, n: int = 1) -> Response:
    """Send the browser on after a change, so that loading again changes nothing."""
    query = f"?did={did}&n={n}" if did else ""
    return RedirectResponse(path + query, 303, HEADERS)


def _flash(request: Request) -> str:
    n = request.query_params.get("n", "1")
    text = DONE.get(request.query_params.get("did", ""), "")
    return text.format(n=n) if n.isascii() and n.isdigit() and len(n) < 10 else ""  # noqa: PLR2004


def _instant(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _stamp(value: datetime | str | None) -> str:
    return _instant(value).strftime("%Y-%m-%d %H:%M:%S UTC") if value is not None else ""


def _number(value: float | None) -> str:
    if value is None:
        return "unlimited"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}".removesuffix(".0")


def _pretty(value: Any) -> str:
    """For reading; what looks like a secret is masked here as in the log."""
    return orjson.dumps(redact(value), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS, default=str).decode()


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}…{text[-4:]}" if len(text) > 16 else text  # noqa: PLR2004

"""Faults on request: what the next calls that match shall suffer."""

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import cast

import orjson

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params
from devkit.stripe.world import World

KINDS = ("status", "delay", "hang", "cut", "applied_then_status", "applied_then_hang", "applied_then_cut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. `applied_then_*` kinds do the work first, so that only the answer is lost."""

    kind: str
    method: str = "*"
    path: str = "*"
    times: int = 1
    skip: int = 0
    status: int = 500
    delay_s: float = 60.0
    retry_after_s: int | None = None
    should_retry: bool | None = None

    @property
    def is_applied(self) -> bool:
        return self.kind.startswith("applied_then_") or self.kind == "delay"

    def error(self) -> ApiError:
        kind = "rate_limit_error" if self.status == 429 else "api_error"  # noqa: PLR2004 - the status itself
        return ApiError(self.status, kind, "An injected fault of the local emulator.")

    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.should_retry is not None:
            headers["Stripe-Should-Retry"] = str(self.should_retry).lower()
        return headers


def plan(world: World, params: Params) -> Json:
    """Store a fault for the next `times` calls that match, after letting `skip` of them pass."""
    params.only(("kind", "method", "path", "times", "skip", "status", "delay_s", "retry_after_s", "should_retry"))
    kind = params.choice("kind", KINDS, "status")
    fault = Fault(
        kind=kind or "status",
        method=(params.text("method") or "*").upper(),
        path=params.text("path") or "*",
        times=params.number("times") or 1,
        skip=params.number("skip") or 0,
        status=params.number("status") or 500,
        delay_s=float(params.text("delay_s") or 60),
        retry_after_s=params.number("retry_after_s"),
        should_retry=params.flag("should_retry"),
    )
    cursor = world.store.sql.execute("INSERT INTO faults (body) VALUES (?)", (orjson.dumps(asdict(fault)).decode(),))
    return {"id": cursor.lastrowid, **asdict(fault)}


def planned(world: World) -> list[Json]:
    rows = world.store.sql.execute("SELECT id, body FROM faults ORDER BY id").fetchall()
    return [{"id": row["id"], **orjson.loads(row["body"])} for row in rows]


def take(world: World, method: str, path: str) -> Fault | None:
    """The fault that this call suffers, counted down."""
    for row in planned(world):
        number = cast("int", row.pop("id"))
        if row["method"] not in {"*", method} or not fnmatchcase(path, row["path"]):
            continue
        fault = Fault(**row)
        if fault.skip > 0:
            row["skip"] -= 1
        elif fault.times <= 1:
            world.store.sql.execute("DELETE FROM faults WHERE id = ?", (number,))
            return fault
        else:
            row["times"] -= 1
        world.store.sql.execute("UPDATE faults SET body = ? WHERE id = ?", (orjson.dumps(row).decode(), number))
        return fault if fault.skip == 0 else None
    return None

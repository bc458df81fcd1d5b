"""`/_emulator/*`: what a test or a developer may do that the API has no call for."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import cast

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devkit.stripe import calls, clocks, faults, payments
from devkit.stripe.catalogue import INTERVALS
from devkit.stripe.deliveries import Conduct
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, from_json, parse_form
from devkit.stripe.periods import shifted
from devkit.stripe.seeds import seed
from devkit.stripe.world import World, visible

Action = Callable[[World, Params], Awaitable[Json]]


def answer(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


async def health(world: World, _params: Params) -> Json:
    return {"status": "ok", "now": world.now(), "offset_s": world.offset_s()}


async def clock(world: World, _params: Params) -> Json:
    return {"now": world.now(), "offset_s": world.offset_s()}


async def advance(world: World, params: Params) -> Json:
    """Move the global clock by `seconds`, by `days`, by one `interval`, or `to` a Unix time; forward only."""
    params.only(("seconds", "days", "interval", "to"))
    now = world.now()
    target = params.number("to") or now + (params.number("seconds") or 0) + 86_400 * (params.number("days") or 0)
    interval = params.choice("interval", INTERVALS)
    if interval is not None:
        target = shifted(now, interval, 1)
    if target < now:
        raise ApiError.invalid("The clock moves forward only.", param="to")
    await clocks.move_global(world, target)
    world.committed()
    return await clock(world, params)


async def plan_outcomes(world: World, params: Params) -> Json:
    """Set what the next payments of a `customer` ('*' for anyone's) come to, one `outcomes[]` each."""
    params.only(("customer", "outcomes"))
    customer = params.text("customer") or "*"
    outcomes = params.texts("outcomes")
    for outcome in outcomes:
        if outcome not in payments.OUTCOMES:
            raise ApiError.invalid(f"An outcome is one of {', '.join(payments.OUTCOMES)}.", param="outcomes")
        world.store.sql.execute("INSERT INTO outcomes (customer, outcome) VALUES (?, ?)", (customer, outcome))
    return await list_outcomes(world, params)


async def list_outcomes(world: World, _params: Params) -> Json:
    rows = world.store.sql.execute("SELECT customer, outcome FROM outcomes ORDER BY id").fetchall()
    return {"outcomes": [dict(row) for row in rows]}


async def clear_outcomes(world: World, _params: Params) -> Json:
    world.store.sql.execute("DELETE FROM outcomes")
    return {"outcomes": []}


async def plan_fault(world: World, params: Params) -> Json:
    return faults.plan(world, params)


async def list_faults(world: World, _params: Params) -> Json:
    return {"faults": faults.planned(world)}


async def clear_faults(world: World, _params: Params) -> Json:
    world.store.sql.execute("DELETE FROM faults")
    return {"faults": []}


async def conduct_deliveries(world: World, params: Params) -> Json:
    """Pause or resume (`is_paused`), send each delivery `copies` times, or `shuffles` their order."""
    params.only(("is_paused", "copies", "shuffles"))
    conduct = Conduct(**world.store.document("conduct", {}))
    if "is_paused" in params:
        conduct.is_paused = bool(params.flag("is_paused"))
    if "shuffles" in params:
        conduct.shuffles = bool(params.flag("shuffles"))
    if "copies" in params:
        conduct.copies = max(params.number("copies") or 1, 1)
    world.store.put_document("conduct", asdict(conduct))
    return asdict(conduct)


async def list_deliveries(world: World, params: Params) -> Json:
    state = params.text("state")
    rows = world.store.sql.execute(
        "SELECT * FROM deliveries WHERE ? IS NULL OR state = ? ORDER BY id DESC LIMIT ?",
        (state, state, params.number("limit") or 1_000),
    ).fetchall()
    counts = world.store.sql.execute("SELECT state, count(*) AS n FROM deliveries GROUP BY state").fetchall()
    return {
        "conduct": asdict(Conduct(**world.store.document("conduct", {}))),
        "counts": {"pending": 0, "delivered": 0, "dropped": 0} | {row["state"]: row["n"] for row in counts},
        "deliveries": [dict(row) for row in rows],
    }


async def flush_deliveries(world: World, _params: Params) -> Json:
    """Make every pending delivery due now instead of after its back-off."""
    cursor = world.store.sql.execute("UPDATE deliveries SET next_at = 0 WHERE state = 'pending'")
    return {"due": cursor.rowcount}


async def redeliver(world: World, params: Params) -> Json:
    """Send an `event` once more to every endpoint that got it, as the dashboard's resend does."""
    event = params.need("event")
    rows = world.store.sql.execute("SELECT DISTINCT endpoint FROM deliveries WHERE event = ?", (event,)).fetchall()
    for row in rows:
        world.enqueue(event, row["endpoint"])
    return {"event": event, "deliveries": len(rows)}


async def list_calls(world: World, params: Params) -> Json:
    """The truth log: every call that reached the API, with its key, status, fault and resulting object."""
    rows = calls.logged(world, after=params.number("after") or 0, limit=params.number("limit") or 10_000)
    method, path = params.text("method"), params.text("path")
    return {"calls": [row for row in rows if method in {None, row["method"]} and path in {None, row["path"]}]}


async def open_dispute(world: World, params: Params) -> Json:
    params.only(("charge", "reason"))
    charge, reason = params.need("charge"), params.text("reason") or "fraudulent"
    return _done(world.attempt(lambda: payments.open_dispute(world, charge, reason)))


async def end_dispute(world: World, params: Params) -> Json:
    params.only(("dispute", "status"))
    status = params.choice("status", ("won", "lost"), "won") or "won"
    dispute = params.need("dispute")
    return _done(world.attempt(lambda: payments.end_dispute(world, dispute, status)))


def _done(result: Json | ApiError) -> Json:
    if isinstance(result, ApiError):
        raise result
    return visible(result)


async def reset(world: World, _params: Params) -> Json:
    """Forget everything but what the command line gave: the endpoint and the seeded plans."""
    world.store.clear()
    seed(world)
    return await health(world, _params)


ACTIONS: list[tuple[str, str, Action]] = [
    ("GET", "/health", health),
    ("GET", "/clock", clock),
    ("POST", "/clock/advance", advance),
    ("GET", "/outcomes", list_outcomes),
    ("POST", "/outcomes", plan_outcomes),
    ("DELETE", "/outcomes", clear_outcomes),
    ("GET", "/faults", list_faults),
    ("POST", "/faults", plan_fault),
    ("DELETE", "/faults", clear_faults),
    ("GET", "/deliveries", list_deliveries),
    ("POST", "/deliveries", conduct_deliveries),
    ("POST", "/deliveries/flush", flush_deliveries),
    ("POST", "/deliveries/redeliver", redeliver),
    ("GET", "/calls", list_calls),
    ("POST", "/disputes", open_dispute),
    ("POST", "/disputes/end", end_dispute),
    ("POST", "/reset", reset),
]


def routes(world: World) -> list[Route]:
    return [Route(path, _endpoint(world, action), methods=[method]) for method, path, action in ACTIONS]


async def read_fields(request: Request) -> Json:
    """Fields from the query and from a form or JSON body."""
    fields = parse_form(request.url.query)
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            given = from_json(orjson.loads(body or b"{}"))
        except orjson.JSONDecodeError as error:
            raise ApiError.invalid("Invalid JSON in the request body.") from error
        return fields | cast("Json", given if isinstance(given, dict) else {})
    return fields | parse_form(body.decode())


def _endpoint(world: World, action: Action) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            result = await action(world, Params(await read_fields(request)))
        except ApiError as error:
            return answer(error.body(), error.status)
        world.committed()
        return answer(result)

    return endpoint

"""Meters and the usage reported to them: accepted at once, judged afterwards, as with Stripe."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import cast

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.rendering import LIST_PARAMS, page
from devkit.stripe.thin_events import announce, wall_stamp
from devkit.stripe.usage import used
from devkit.stripe.world import DAY_S, Call, Route, World, copied

KIND = "billing.meter"
OLDEST_S = 35 * DAY_S
FUTURE_S = 300
MOST_DIGITS = 15
SAME_FOR_S = DAY_S
WINDOWS_S = {"hour": 3_600, "day": DAY_S}


def create_meter(world: World, call: Call) -> Json:
    params = call.params
    params.only(
        ("customer_mapping", "default_aggregation", "display_name", "event_name", "event_time_window", "value_settings")
    )
    name = params.need("event_name")
    if _meter_named(world, name) is not None:
        raise ApiError.invalid(f"An active meter with the event name '{name}' already exists.", param="event_name")
    aggregation = params.part("default_aggregation")
    aggregation.need("formula")
    now = world.now()
    body: Json = {
        "id": world.new_id("mtr_test"),
        "object": KIND,
        "created": now,
        "customer_mapping": {
            "event_payload_key": params.part("customer_mapping").text("event_payload_key") or "stripe_customer_id",
            "type": "by_id",
        },
        "default_aggregation": {"formula": aggregation.choice("formula", ("count", "last", "sum"))},
        "display_name": params.need("display_name"),
        "event_name": name,
        "event_time_window": params.choice("event_time_window", ("day", "hour")),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": now,
        "value_settings": {"event_payload_key": params.part("value_settings").text("event_payload_key") or "value"},
    }
    return world.add(body, "billing.meter.created")


def _meter_named(world: World, event_name: str) -> Json | None:
    found = [meter for meter in world.store.newest_first(KIND) if meter["event_name"] == event_name]
    return next((meter for meter in found if meter["status"] == "active"), None)


def update_meter(world: World, call: Call) -> Json:
    call.params.only(("display_name",))
    before = world.need(KIND, call.ids[0])
    after: Json = copied(before) | {"display_name": call.params.need("display_name"), "updated": world.now()}
    return world.change(before, after, "billing.meter.updated")


def deactivate_meter(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need(KIND, call.ids[0])
    after: Json = copied(before) | {"status": "inactive", "updated": world.now()}
    after["status_transitions"]["deactivated_at"] = world.now()
    return world.change(before, after, "billing.meter.deactivated")


def reactivate_meter(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need(KIND, call.ids[0])
    after: Json = copied(before) | {"status": "active", "updated": world.now()}
    after["status_transitions"]["deactivated_at"] = None
    return world.change(before, after, "billing.meter.reactivated")


def retrieve_meter(world: World, call: Call) -> Json:
    return world.need(KIND, call.ids[0])


def list_meters(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "status"))
    status = call.params.choice("status", ("active", "inactive"))
    return page(world, call, KIND, keep=lambda meter: status in {None, meter["status"]})


def create_meter_event(world: World, call: Call) -> Json:
    """Usage for a customer. What cannot be counted is accepted here and reported by a thin event, as with Stripe."""
    params = call.params
    params.only(("event_name", "identifier", "payload", "timestamp"))
    name, payload = params.need("event_name"), params.part("payload")
    if not payload.tree:
        raise ApiError.missing_param("payload")
    now = world.now()
    at = _timestamp(call, now)
    identifier = params.text("identifier") or world.new_id("mtrevt")
    is_new = _claim_identifier(world, identifier, now)
    if not is_new:
        raise ApiError.invalid(
            f"An event already exists with identifier {identifier}.", param="identifier", code="duplicate_meter_event"
        )
    problem = _count(world, name, dict(payload.tree), identifier, at)
    if problem is not None:
        if call.path.startswith("/v2/"):
            raise ApiError.invalid(problem[1], code=problem[0])
        _report(world, name, problem, identifier)
    body: Json = {
        "object": "billing.meter_event" if call.path.startswith("/v1/") else "v2.billing.meter_event",
        "created": now if call.path.startswith("/v1/") else _iso(now),
        "event_name": name,
        "identifier": identifier,
        "livemode": False,
        "payload": {key: str(value) for key, value in payload.tree.items()},
        "timestamp": at if call.path.startswith("/v1/") else _iso(at),
    }
    return body


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _timestamp(call: Call, now: int) -> int:
    if call.path.startswith("/v2/"):
        text = call.params.text("timestamp")
        at = now if text is None else int(datetime.fromisoformat(text).timestamp())
    else:
        given = call.params.number("timestamp")
        at = now if given is None else given
    if at > now + FUTURE_S:
        raise ApiError.invalid(
            "The timestamp is more than 5 minutes in the future.", param="timestamp", code="timestamp_in_future"
        )
    if at < now - OLDEST_S:
        raise ApiError.invalid(
            "The timestamp is more than 35 days in the past.", param="timestamp", code="timestamp_too_far_in_past"
        )
    return at


def _claim_identifier(world: World, identifier: str, now: int) -> bool:
    row = world.store.sql.execute("SELECT received_at FROM usage WHERE identifier = ?", (identifier,)).fetchone()
    if row is None:
        return True
    if row["received_at"] > now - SAME_FOR_S:
        return False
    # The name is free again after a day, but the usage it stood for stays.
    world.store.sql.execute(
        "UPDATE usage SET identifier = ? WHERE identifier = ?", (f"{identifier}@{row['received_at']}", identifier)
    )
    return True


def _count(world: World, event_name: str, payload: Json, identifier: str, at: int) -> tuple[str, str] | None:
    """Store the usage; or the code and words of why it cannot be counted."""
    meter = _meter_named(world, event_name)
    value, customer, problem = "0", "", None
    if meter is None:
        problem = ("no_meter", f"No active meter found for event name {event_name}")
    else:
        customer = str(payload.get(meter["customer_mapping"]["event_payload_key"]) or "")
        value = str(payload.get(meter["value_settings"]["event_payload_key"]) or "")
        problem = _problem(world, meter, customer, value)
    world.store.sql.execute(
        "INSERT INTO usage (identifier, meter, customer, at, value, received_at) VALUES (?, ?, ?, ?, ?, ?)",
        (
            identifier,
            (meter or {}).get("id", "") if problem is None else "",
            customer,
            at,
            value if problem is None and value else "1",
            world.now(),
        ),
    )
    return problem


def _problem(world: World, meter: Json, customer: str, value: str) -> tuple[str, str] | None:
    if not customer:
        return "meter_event_no_customer_defined", "The payload names no customer."
    if (world.store.find(customer, "customer") or {"deleted": True}).get("deleted"):
        return "meter_event_customer_not_found", f"No such customer: {customer}"
    if meter["default_aggregation"]["formula"] == "count" and not value:
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        return "meter_event_invalid_value", f"The value is not a number: {value}"
    if len(amount.as_tuple().digits) > MOST_DIGITS:
        return "meter_event_value_too_many_digits", "The value has too many digits."
    return None


def _report(world: World, event_name: str, problem: tuple[str, str], identifier: str) -> None:
    """Announce by a thin event that reported usage was not counted."""
    code, words = problem
    meter = _meter_named(world, event_name)
    now = wall_stamp()
    sample = {"error_message": words, "request": {"identifier": identifier}}
    data: Json = {
        "developer_message_summary": "There is 1 invalid event",
        "reason": {
            "error_count": 1,
            "error_types": [{"code": code, "error_count": 1, "sample_errors": [sample]}],
        },
        "validation_start": now,
        "validation_end": now,
    }
    announce(
        world,
        "v1.billing.meter.no_meter_found" if meter is None else "v1.billing.meter.error_report_triggered",
        data,
        None if meter is None else {"id": meter["id"], "type": KIND, "url": f"/v1/billing/meters/{meter['id']}"},
    )


def list_summaries(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "customer", "end_time", "start_time", "value_grouping_window"))
    meter = world.need(KIND, call.ids[0])
    customer = world.need("customer", params.need("customer"), param="customer")
    params.need("start_time")
    params.need("end_time")
    start, end = params.number("start_time") or 0, params.number("end_time") or 0
    if start % 60 or end % 60 or start >= end:
        raise ApiError.invalid(
            "start_time and end_time must be aligned with minute boundaries, in order.", param="start_time"
        )
    window = params.choice("value_grouping_window", tuple(WINDOWS_S))
    step = WINDOWS_S[window] if window else end - start
    spans = [(at, min(at + step, end)) for at in range(start, end, step)]
    rows = [_summary(meter, since, until, used(world, meter, customer["id"], since, until)) for since, until in spans]
    shown = [row for row in reversed(rows) if row["aggregated_value"] or window is None]
    return {"object": "list", "data": shown, "has_more": False, "url": call.path}


def _summary(meter: Json, start: int, end: int, value: Decimal) -> Json:
    return {
        "id": f"mtrusg_test_{cast('str', meter['id'])[-12:]}_{start}_{end}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(value),
        "end_time": end,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }


ROUTES: list[Route] = [
    ("POST", "/v1/billing/meters", create_meter),
    ("GET", "/v1/billing/meters", list_meters),
    ("GET", "/v1/billing/meters/{id}", retrieve_meter),
    ("POST", "/v1/billing/meters/{id}", update_meter),
    ("POST", "/v1/billing/meters/{id}/deactivate", deactivate_meter),
    ("POST", "/v1/billing/meters/{id}/reactivate", reactivate_meter),
    ("GET", "/v1/billing/meters/{id}/event_summaries", list_summaries),
    ("POST", "/v1/billing/meter_events", create_meter_event),
    ("POST", "/v2/billing/meter_events", create_meter_event),
]

"""Thin events of the v2 API: small notices without data, the destinations they go to, and their fetching."""

from devkit.clock import wall_moment
from devkit.stripe.errors import Json
from devkit.stripe.world import Call, Route, World, wants


def wall_stamp() -> str:
    """The present as the v2 API writes it."""
    return wall_moment().strftime("%Y-%m-%dT%H:%M:%S.000Z")


def announce(world: World, event_type: str, data: Json, related: Json | None) -> None:
    """Record a thin event and one pending delivery for each destination that wants it."""
    body: Json = {
        "id": world.new_id("evt_test"),
        "object": "v2.core.event",
        "_created": world.now(),
        "created": wall_stamp(),
        "livemode": False,
        "context": None,
        "reason": None,
        "type": event_type,
        "data": data,
    }
    if related is not None:
        body["related_object"] = related
    world.store.put(body)
    for target in list(world.store.oldest_first("v2.core.event_destination")):
        if target["status"] == "enabled" and wants(target["enabled_events"], event_type):
            world.enqueue(body["id"], target["id"])


def retrieve_thin_event(world: World, call: Call) -> Json:
    return world.need("v2.core.event", call.ids[0], noun="event")


def list_thin_events(world: World, call: Call) -> Json:
    found = list(world.store.newest_first("v2.core.event"))[: call.params.number("limit") or 20]
    return {"data": found, "next_page_url": None, "previous_page_url": None}


def create_destination(world: World, call: Call) -> Json:
    """Where thin events go; `include[]=webhook_endpoint.signing_secret` shows the secret."""
    params = call.params
    params.only(
        ("description", "enabled_events", "event_payload", "include", "metadata", "name", "type", "webhook_endpoint")
    )
    url = params.part("webhook_endpoint").need("url")
    secret = f"whsec_{world.new_id('x')[2:]}"
    now = wall_stamp()
    return world.add(
        {
            "id": world.new_id("ed_test"),
            "object": "v2.core.event_destination",
            "_secret": secret,
            "_url": url,
            "_created": world.now(),
            "created": now,
            "description": params.text("description") or "",
            "enabled_events": params.texts("enabled_events"),
            "event_payload": params.choice("event_payload", ("thin",), "thin"),
            "events_from": ["self"],
            "livemode": False,
            "metadata": {},
            "name": params.need("name"),
            "status": "enabled",
            "status_details": None,
            "type": "webhook_endpoint",
            "updated": now,
            "webhook_endpoint": {"signing_secret": secret, "url": url},
        }
    )


def retrieve_destination(world: World, call: Call) -> Json:
    return world.need("v2.core.event_destination", call.ids[0], noun="event destination")


def delete_destination(world: World, call: Call) -> Json:
    body = retrieve_destination(world, call)
    stub: Json = {"id": body["id"], "object": "v2.core.event_destination", "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    return stub


ROUTES: list[Route] = [
    ("GET", "/v2/core/events", list_thin_events),
    ("GET", "/v2/core/events/{id}", retrieve_thin_event),
    ("POST", "/v2/core/event_destinations", create_destination),
    ("GET", "/v2/core/event_destinations/{id}", retrieve_destination),
    ("DELETE", "/v2/core/event_destinations/{id}", delete_destination),
]

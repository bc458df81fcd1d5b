"""Events as the API shows them, and the endpoints they are delivered to."""

import secrets

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import merge_metadata
from devkit.stripe.rendering import LIST_PARAMS, page
from devkit.stripe.world import API_VERSION, Call, Route, World, copied, wants

MOST_TYPES = 20
OWN_ENDPOINT = "we_local"


def retrieve_event(world: World, call: Call) -> Json:
    return world.need("event", call.ids[0])


def list_events(world: World, call: Call) -> Json:
    """Newest first, by `type` (which may end in `.*`), `types[]`, `created` and `delivery_success`."""
    params = call.params
    params.only((*LIST_PARAMS, "delivery_success", "type", "types"))
    sort, sorts, is_done = params.text("type"), params.texts("types"), params.flag("delivery_success")
    if len(sorts) > MOST_TYPES:
        raise ApiError.invalid(f"`types` may have up to {MOST_TYPES} entries.", param="types")

    def keep(event: Json) -> bool:
        name = str(event["type"])
        fits = sort is None or name == sort or (sort.endswith(".*") and name.startswith(sort[:-1]))
        return fits and (not sorts or wants(sorts, name)) and is_done in {None, event["pending_webhooks"] == 0}

    return page(world, call, "event", keep=keep)


def new_endpoint(
    world: World, *, url: str, enabled: list[str], secret: str | None = None, own_id: str | None = None
) -> Json:
    body: Json = {
        "id": own_id or world.new_id("we"),
        "object": "webhook_endpoint",
        "api_version": API_VERSION,
        "application": None,
        "created": world.now(),
        "description": None,
        "enabled_events": enabled,
        "livemode": False,
        "metadata": {},
        "status": "enabled",
        "url": url,
        "_secret": secret or f"whsec_{secrets.token_urlsafe(24)}",
    }
    return world.add(body)


def create_endpoint(world: World, call: Call) -> Json:
    """The answer is the only one that shows the signing secret."""
    params = call.params
    params.only(("api_version", "description", "enabled_events", "metadata", "url"))
    url, enabled = params.need("url"), params.texts("enabled_events")
    if not enabled:
        raise ApiError.missing_param("enabled_events")
    if not url.startswith(("http://", "https://")):
        raise ApiError.invalid("Invalid URL: An explicit scheme (such as https) must be provided.", param="url")
    before = new_endpoint(world, url=url, enabled=enabled)
    after: Json = copied(before) | {"description": params.text("description"), "metadata": merge_metadata({}, params)}
    world.store.put(after)
    return after | {"secret": after["_secret"]}


def update_endpoint(world: World, call: Call) -> Json:
    params = call.params
    params.only(("description", "disabled", "enabled_events", "metadata", "url"))
    before = world.need("webhook_endpoint", call.ids[0], noun="webhook endpoint")
    after: Json = copied(before) | {"metadata": merge_metadata(before["metadata"], params)}
    for name in ("description", "url"):
        if name in params:
            after[name] = params.text(name)
    if "enabled_events" in params:
        after["enabled_events"] = params.texts("enabled_events")
    if "disabled" in params:
        after["status"] = "disabled" if params.flag("disabled") else "enabled"
    return world.change(before, after)


def retrieve_endpoint(world: World, call: Call) -> Json:
    return world.need("webhook_endpoint", call.ids[0], noun="webhook endpoint")


def list_endpoints(world: World, call: Call) -> Json:
    call.params.only(LIST_PARAMS)
    return page(world, call, "webhook_endpoint")


def delete_endpoint(world: World, call: Call) -> Json:
    body = world.need("webhook_endpoint", call.ids[0], noun="webhook endpoint")
    stub: Json = {"id": body["id"], "object": "webhook_endpoint", "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    drop_deliveries(world, body["id"])
    return stub


def drop_deliveries(world: World, endpoint_id: str) -> None:
    """Give up what is still pending for an endpoint; its events wait for it no longer."""
    rows = world.store.sql.execute(
        "UPDATE deliveries SET state = 'dropped' WHERE endpoint = ? AND state = 'pending' RETURNING event",
        (endpoint_id,),
    ).fetchall()
    for row in rows:
        event = world.store.find(row["event"], "event")
        if event is not None:
            world.store.put(copied(event) | {"pending_webhooks": max(event["pending_webhooks"] - 1, 0)})


ROUTES: list[Route] = [
    ("GET", "/v1/events", list_events),
    ("GET", "/v1/events/{id}", retrieve_event),
    ("POST", "/v1/webhook_endpoints", create_endpoint),
    ("GET", "/v1/webhook_endpoints", list_endpoints),
    ("GET", "/v1/webhook_endpoints/{id}", retrieve_endpoint),
    ("POST", "/v1/webhook_endpoints/{id}", update_endpoint),
    ("DELETE", "/v1/webhook_endpoints/{id}", delete_endpoint),
]

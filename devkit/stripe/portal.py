"""The billing portal: sessions, configurations, and what a customer can do on the page."""

from typing import cast

from devkit.stripe import customers, subscriptions
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, from_json, merge_metadata
from devkit.stripe.lifecycle import items_of
from devkit.stripe.rendering import LIST_PARAMS, page
from devkit.stripe.world import Call, Route, World, copied

KIND = "billing_portal.session"
CONFIGURATION = "billing_portal.configuration"
DEFAULT = "bpc_local_default"
CONFIGURATION_KNOWN = ("business_profile", "default_return_url", "features", "login_page", "metadata", "name")


def default_configuration(world: World) -> Json:
    """The configuration that sessions use when they name none; made on first use."""
    found = world.store.find(DEFAULT)
    return found or _new_configuration(world, Params({}), own_id=DEFAULT)


def _new_configuration(world: World, params: Params, *, own_id: str | None = None) -> Json:
    now = world.now()
    body: Json = {
        "id": own_id or world.new_id("bpc"),
        "object": CONFIGURATION,
        "active": True,
        "application": None,
        "business_profile": {"headline": None, "privacy_policy_url": None, "terms_of_service_url": None},
        "created": now,
        "default_return_url": params.text("default_return_url"),
        "features": {
            "customer_update": {"allowed_updates": ["email"], "enabled": True},
            "invoice_history": {"enabled": True},
            "payment_method_update": {"enabled": True, "payment_method_configuration": None},
            "subscription_cancel": {
                "cancellation_reason": {"enabled": False, "options": []},
                "enabled": True,
                "mode": "at_period_end",
                "proration_behavior": "none",
            },
            "subscription_update": {
                "billing_cycle_anchor": None,
                "default_allowed_updates": ["price"],
                "enabled": True,
                "proration_behavior": "create_prorations",
                "schedule_at_period_end": {"conditions": []},
                "trial_update_behavior": "end_trial",
            },
        },
        "is_default": own_id == DEFAULT,
        "livemode": False,
        "login_page": {"enabled": False, "url": None},
        "metadata": merge_metadata({}, params),
        "name": params.text("name"),
        "updated": now,
    }
    for part in ("business_profile", "features"):
        for name, value in cast("Json", params.plain(part) or {}).items():
            kept = body[part].get(name)
            body[part][name] = kept | _typed(value) if isinstance(kept, dict) else value
    return world.add(body, "billing_portal.configuration.created")


def _typed(value: object) -> Json:
    words = {"true": True, "false": False}
    given = cast("Json", value) if isinstance(value, dict) else {}
    return {key: words.get(item, item) if isinstance(item, str) else item for key, item in given.items()}


def create_configuration(world: World, call: Call) -> Json:
    call.params.only(CONFIGURATION_KNOWN)
    return _new_configuration(world, call.params)


def retrieve_configuration(world: World, call: Call) -> Json:
    return world.need(CONFIGURATION, call.ids[0])


def list_configurations(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "active", "is_default"))
    default_configuration(world)
    return page(world, call, CONFIGURATION)


def create_session(world: World, call: Call) -> Json:
    params = call.params
    params.only(("configuration", "customer", "flow_data", "locale", "on_behalf_of", "return_url"))
    customer = world.need("customer", params.need("customer"), param="customer")
    name = params.text("configuration")
    configuration = (
        world.need(CONFIGURATION, name, param="configuration") if name is not None else default_configuration(world)
    )
    session_id = world.new_id("bps")
    flow = cast("Json | None", params.plain("flow_data"))
    return world.add(
        {
            "id": session_id,
            "object": KIND,
            "after_expiration": None,
            "configuration": configuration["id"],
            "created": world.now(),
            "customer": customer["id"],
            "customer_account": None,
            "flow": flow
            and {
                "after_completion": {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"},
                "subscription_cancel": None,
                "subscription_update": None,
                "subscription_update_confirm": None,
            }
            | flow,
            "livemode": False,
            "locale": params.text("locale"),
            "on_behalf_of": None,
            "return_url": params.text("return_url"),
            "url": f"{world.settings.public_url}/portal/{session_id}",
        }
    )


def session_of(world: World, session_id: str) -> Json:
    return world.need(KIND, session_id, noun="portal session")


def act(world: World, session_id: str, action: str, fields: Json) -> Json:
    """What the customer does on the page: `cancel`, `resume`, `switch` (with `price`) or `card` (with `card`)."""
    session = session_of(world, session_id)
    if action == "card":
        method = customers.attach(world, str(fields.get("card") or "pm_card_visa"), session["customer"])
        _use_for_all(world, session["customer"], method["id"])
        return customers.set_default_method(world, session["customer"], method["id"])
    subscription = world.need("subscription", str(fields.get("subscription") or ""), param="subscription")
    if subscription["customer"] != session["customer"]:
        raise ApiError.not_found("subscription", subscription["id"])
    match action:
        case "cancel":
            change: Json = {"cancel_at_period_end": "true"}
        case "resume":
            change = {"cancel_at_period_end": "false"}
        case "switch":
            items = [{"id": items_of(subscription)[0]["id"], "price": str(fields.get("price") or "")}]
            change = {"items": from_json(items), "proration_behavior": "create_prorations"}
        case _:
            raise ApiError.invalid(f"The portal page knows no action {action}.")
    return subscriptions.apply_update(world, subscription, Params(change))


def _use_for_all(world: World, customer: str, method: str) -> None:
    for subscription in list(world.store.newest_first("subscription", owner=customer)):
        if subscription["status"] not in {"canceled", "incomplete_expired"} and subscription["default_payment_method"]:
            after: Json = copied(subscription) | {"default_payment_method": method}
            subscriptions.save(world, subscription, after)


ROUTES: list[Route] = [
    ("POST", "/v1/billing_portal/sessions", create_session),
    ("POST", "/v1/billing_portal/configurations", create_configuration),
    ("GET", "/v1/billing_portal/configurations", list_configurations),
    ("GET", "/v1/billing_portal/configurations/{id}", retrieve_configuration),
]

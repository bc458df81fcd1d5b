"""The subscriptions API: what a caller may ask of a subscription."""

from typing import cast

from devkit.stripe import invoicing, lifecycle
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, merge_metadata
from devkit.stripe.lifecycle import Span, clock_of, items_of, save
from devkit.stripe.periods import next_boundary
from devkit.stripe.rendering import LIST_PARAMS, list_of, page, search_page
from devkit.stripe.subscription_changes import ITEM_KNOWN, change_items, need_price
from devkit.stripe.world import DAY_S, Call, Route, World, copied

CREATE_KNOWN = (
    "automatic_tax",
    "billing_cycle_anchor",
    "billing_mode",
    "cancel_at",
    "cancel_at_period_end",
    "collection_method",
    "currency",
    "customer",
    "days_until_due",
    "default_payment_method",
    "description",
    "items",
    "metadata",
    "off_session",
    "payment_behavior",
    "payment_settings",
    "proration_behavior",
    "trial_end",
    "trial_period_days",
    "trial_settings",
)
UPDATE_KNOWN = (
    *(name for name in CREATE_KNOWN if name not in {"billing_mode", "currency", "customer", "trial_period_days"}),
    "cancellation_details",
    "pause_collection",
    "proration_date",
)
BEHAVIOURS = ("allow_incomplete", "default_incomplete", "error_if_incomplete")
STATUSES = (
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "canceled",
    "unpaid",
    "paused",
    "ended",
    "all",
)


def create_subscription(world: World, call: Call) -> Json:
    call.params.only(CREATE_KNOWN)
    return start(world, call.params, world.need("customer", call.params.need("customer"), param="customer"))


def start(world: World, params: Params, customer: Json) -> Json:
    """Create a subscription for a customer and make its first payment; also what Checkout does."""
    wanted = params.parts("items")
    if not wanted:
        raise ApiError.missing_param("items")
    now = world.now(customer["test_clock"])
    subscription_id = world.new_id("sub")
    items = [_new_item(world, part, subscription_id, now) for part in wanted]
    if len({str(item["price"]["recurring"]["interval"]) for item in items}) > 1:
        raise ApiError.invalid("All items of a subscription must have the same billing interval here.", param="items")
    trial_end = _trial_end(params, items, now)
    anchor = trial_end or params.number("billing_cycle_anchor") or now
    first_end = trial_end or next_boundary(anchor, items[0]["price"], now)
    body = _new_body(world, params, customer, subscription_id) | {
        "billing_cycle_anchor": anchor,
        "items": list_of(items, f"/v1/subscription_items?subscription={subscription_id}"),
        "currency": items[0]["price"]["currency"],
        "status": "trialing" if trial_end else "incomplete",
        "trial_start": now if trial_end else None,
        "trial_end": trial_end,
        "_trial_warned": trial_end is None,
    }
    lifecycle.set_period(body, Span(start=now, end=first_end))
    _apply_cancellation(world, body, params)
    behaviour = params.choice("payment_behavior", BEHAVIOURS, "allow_incomplete")
    is_sent = body["collection_method"] == "send_invoice"
    needs_card = behaviour != "default_incomplete" and not trial_end and not is_sent
    if needs_card and lifecycle.method_for(world, body) is None and any(item["price"]["unit_amount"] for item in items):
        raise ApiError.invalid(
            "This customer has no attached payment source or default payment method. Please consider adding a "
            "default payment method.",
            code="resource_missing",
        )
    if is_sent and not trial_end:
        body["status"] = "active"
    ahead = Span(start=now, end=first_end)
    body, invoice = lifecycle.bill(world, body, "subscription_create", ahead=None if trial_end else ahead)
    world.store.put(body, due_at=lifecycle.due_at(body))
    world.emit("customer.subscription.created", body)
    _pay_first(world, invoice, behaviour or "")
    return world.need("subscription", subscription_id)


def _pay_first(world: World, draft: Json, behaviour: str) -> None:
    if behaviour == "default_incomplete":
        opened = invoicing.finalize(world, draft)
        if opened["status"] == "paid":
            lifecycle.settled(world, opened)
        return
    _, decline = lifecycle.settle_now(world, draft)
    if decline is not None and behaviour == "error_if_incomplete":
        raise ApiError.declined(decline, keeps_effects=False)


def _new_item(world: World, params: Params, subscription_id: str, now: int) -> Json:
    params.only(ITEM_KNOWN)
    price = need_price(world, params)
    is_metered = price["recurring"]["usage_type"] == "metered"
    if is_metered and "quantity" in params:
        raise ApiError.invalid("You cannot set the quantity for metered prices.", param=params.name("quantity"))
    item: Json = {
        "id": world.new_id("si"),
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": now,
        "current_period_end": 0,
        "current_period_start": 0,
        "discounts": [],
        "metadata": merge_metadata({}, params),
        "price": price,
        "subscription": subscription_id,
        "tax_rates": [],
    }
    if not is_metered:
        quantity = params.number("quantity")
        item["quantity"] = 1 if quantity is None else quantity
    return item


def _trial_end(params: Params, items: list[Json], now: int) -> int | None:
    given = params.text("trial_end")
    if given is not None and given != "now":
        moment = params.number("trial_end")
        if moment is None or moment <= now:
            raise ApiError.invalid(
                "Invalid timestamp: must be an integer Unix timestamp in the future.", param="trial_end"
            )
        return moment
    days = params.number("trial_period_days") if given is None else 0
    if days is None:
        days = max((item["price"]["recurring"]["trial_period_days"] or 0 for item in items), default=0)
    return now + days * DAY_S if days else None


def _new_body(world: World, params: Params, customer: Json, subscription_id: str) -> Json:
    collection = params.choice("collection_method", ("charge_automatically", "send_invoice"), "charge_automatically")
    days = params.number("days_until_due")
    if collection == "send_invoice" and days is None:
        raise ApiError.missing_param("days_until_due")
    behaviour = params.part("trial_settings").part("end_behavior")
    now = world.now(customer["test_clock"])
    return {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": {"proration_discounts": "included"}, "type": "flexible"},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": collection,
        "created": now,
        "customer": customer["id"],
        "customer_account": None,
        "days_until_due": days,
        "default_payment_method": params.text("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": params.text("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "managed_payments": None,
        "metadata": merge_metadata({}, params),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now,
        "status_details": None,
        "test_clock": customer["test_clock"],
        "transfer_data": None,
        "trial_settings": {
            "end_behavior": {
                "missing_payment_method": behaviour.choice(
                    "missing_payment_method", ("cancel", "create_invoice", "pause"), "create_invoice"
                )
            }
        },
    }


def _apply_cancellation(world: World, body: Json, params: Params) -> None:
    """`cancel_at_period_end` and `cancel_at`, set or taken back."""
    now = world.now(clock_of(body))
    at_end = params.flag("cancel_at_period_end")
    if at_end is not None:
        body["cancel_at_period_end"] = at_end
        _set_cancel_at(body, lifecycle.period_of(body).end if at_end else None, now)
    if "cancel_at" in params:
        given = params.text("cancel_at")
        if given in {"min_period_end", "max_period_end"}:
            moment: int | None = lifecycle.period_of(body).end
        else:
            moment = params.number("cancel_at")
        if moment is not None and moment <= now:
            raise ApiError.invalid("`cancel_at` must be a timestamp in the future.", param="cancel_at")
        body["cancel_at_period_end"] = False
        _set_cancel_at(body, moment, now)


def _set_cancel_at(body: Json, moment: int | None, now: int) -> None:
    body["cancel_at"] = moment
    body["canceled_at"] = None if moment is None else now
    body["cancellation_details"]["reason"] = None if moment is None else "cancellation_requested"


def update_subscription(world: World, call: Call) -> Json:
    call.params.only(UPDATE_KNOWN)
    return apply_update(world, world.need("subscription", call.ids[0]), call.params)


def apply_update(world: World, before: Json, params: Params) -> Json:
    """Change a running subscription; also what the portal does."""
    _refuse_if_ended(before, params)
    after = copied(before)
    after["metadata"] = merge_metadata(before["metadata"], params)
    for name in ("default_payment_method", "description"):
        if name in params:
            after[name] = params.text(name)
    if "pause_collection" in params:
        after["pause_collection"] = _pause_collection(params)
    details = params.part("cancellation_details")
    for name in ("comment", "feedback"):
        if name in details:
            after["cancellation_details"][name] = details.text(name)
    _apply_cancellation(world, after, params)
    if "trial_end" in params and params.text("trial_end") != "now":
        _move_trial(world, after, params)
    if "items" in params or params.text("billing_cycle_anchor") == "now":
        change_items(world, before, after, params, new_item=_new_item)
    else:
        save(world, before, after)
    current = world.need("subscription", before["id"])
    if params.text("trial_end") == "now" and current["status"] == "trialing":
        lifecycle.end_trial(world, current, at_once=True)
    return world.need("subscription", before["id"])


def _refuse_if_ended(subscription: Json, params: Params) -> None:
    allowed = {"metadata", "cancellation_details", "expand"}
    if subscription["status"] in lifecycle.ENDED and set(params) - allowed:
        raise ApiError.invalid("A canceled subscription can only update its cancellation_details and metadata.")


def _pause_collection(params: Params) -> Json | None:
    part = params.part("pause_collection")
    if not part.tree:
        return None
    part.only(("behavior", "resumes_at"))
    part.need("behavior")
    return {
        "behavior": part.choice("behavior", ("keep_as_draft", "mark_uncollectible", "void")),
        "resumes_at": part.number("resumes_at"),
    }


def _move_trial(world: World, after: Json, params: Params) -> None:
    moment = _trial_end(params, items_of(after), world.now(clock_of(after)))
    after |= {"trial_end": moment, "trial_start": after["trial_start"] or world.now(clock_of(after))}
    after |= {"status": "trialing", "billing_cycle_anchor": moment, "_trial_warned": False}
    lifecycle.set_period(after, Span(start=lifecycle.period_of(after).start, end=cast("int", moment)))


def cancel_subscription(world: World, call: Call) -> Json:
    params = call.params
    params.only(("cancellation_details", "invoice_now", "prorate"))
    before = world.need("subscription", call.ids[0])
    if before["status"] in lifecycle.ENDED:
        raise ApiError.not_found("subscription", before["id"])
    noted = copied(before)
    for name in ("comment", "feedback"):
        noted["cancellation_details"][name] = params.part("cancellation_details").text(name)
    bills = bool(params.flag("invoice_now"))
    after = lifecycle.end(world, noted, reason="cancellation_requested", bills_usage=bills)
    if bills and after["latest_invoice"] != before["latest_invoice"]:
        lifecycle.settle_now(world, world.need("invoice", after["latest_invoice"]))
    return after


def pause_subscription(world: World, call: Call) -> Json:
    call.params.only(("bill_for", "invoicing_behavior", "type"))
    before = world.need("subscription", call.ids[0])
    if before["status"] not in {*lifecycle.RUNNING, "trialing"}:
        raise ApiError.invalid(f"A subscription that is {before['status']} cannot be paused.")
    return lifecycle.pause(world, before, "pause_requested")


def resume_subscription(world: World, call: Call) -> Json:
    """Run again from now; a period that ended while it was paused is billed first."""
    call.params.only(("billing_cycle_anchor", "payment_behavior", "proration_behavior", "proration_date"))
    before = world.need("subscription", call.ids[0])
    if before["status"] != "paused":
        raise ApiError.invalid("Only a paused subscription can be resumed.")
    now = world.now(clock_of(before))
    if call.params.part("billing_cycle_anchor").text("type") == "unchanged" and lifecycle.period_of(before).end > now:
        after = save(world, before, copied(before) | {"status": "active", "status_details": None})
        world.emit("customer.subscription.resumed", after)
        return after
    ahead = Span(start=now, end=next_boundary(now, items_of(before)[0]["price"], now))
    moved: Json = copied(before) | {"billing_cycle_anchor": now}
    lifecycle.set_period(moved, ahead)
    after, invoice = lifecycle.bill(world, moved, "subscription_update", ahead=ahead)
    after["_resumes_with"] = invoice["id"]
    save(world, before, after)
    lifecycle.settle_now(world, invoice)
    return world.need("subscription", before["id"])


def retrieve_subscription(world: World, call: Call) -> Json:
    return world.need("subscription", call.ids[0])


def list_subscriptions(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "collection_method", "customer", "price", "status", "test_clock"))
    status = params.choice("status", STATUSES)
    price, clock, owner = params.text("price"), params.text("test_clock"), params.text("customer")

    def keep(body: Json) -> bool:
        if status is None:
            fits = body["status"] != "canceled"
        elif status == "ended":
            fits = body["status"] in lifecycle.ENDED
        else:
            fits = status in {"all", body["status"]}
        has_price = price is None or any(item["price"]["id"] == price for item in items_of(body))
        # Stripe leaves objects on test clocks out of lists that name neither the clock nor the customer.
        return fits and has_price and (owner is not None or body["test_clock"] == clock)

    return page(world, call, "subscription", owner=owner, keep=keep)


def search_subscriptions(world: World, call: Call) -> Json:
    call.params.only(("query", "limit", "page"))
    return search_page(world, call, "subscription")


def delete_customer(world: World, call: Call) -> Json:
    """Cancel the customer's subscriptions at once and leave a stub in its place."""
    body = world.need("customer", call.ids[0])
    for subscription in list(world.store.newest_first("subscription", owner=body["id"])):
        if subscription["status"] not in lifecycle.ENDED:
            lifecycle.end(world, subscription, reason=None)
    stub: Json = {"id": body["id"], "object": "customer", "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    world.emit("customer.deleted", body)
    return stub


ROUTES: list[Route] = [
    ("DELETE", "/v1/customers/{id}", delete_customer),
    ("POST", "/v1/subscriptions", create_subscription),
    ("GET", "/v1/subscriptions", list_subscriptions),
    ("GET", "/v1/subscriptions/search", search_subscriptions),
    ("GET", "/v1/subscriptions/{id}", retrieve_subscription),
    ("POST", "/v1/subscriptions/{id}", update_subscription),
    ("DELETE", "/v1/subscriptions/{id}", cancel_subscription),
    ("POST", "/v1/subscriptions/{id}/pause", pause_subscription),
    ("POST", "/v1/subscriptions/{id}/resume", resume_subscription),
]

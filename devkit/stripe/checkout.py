"""Checkout sessions: created by the API, completed by whoever stands at the hosted page."""

from typing import cast

from devkit.stripe import customers, payments, subscriptions
from devkit.stripe.catalogue import new_product, price_from
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, from_json, merge_metadata
from devkit.stripe.invoice_lines import amount_of
from devkit.stripe.rendering import LIST_PARAMS, list_of, page
from devkit.stripe.world import DAY_S, Call, Route, World, copied, inner

SHORTEST_S = 30 * 60
MODES = ("payment", "setup", "subscription")
KNOWN = (
    "after_expiration",
    "allow_promotion_codes",
    "automatic_tax",
    "billing_address_collection",
    "cancel_url",
    "client_reference_id",
    "consent_collection",
    "currency",
    "custom_text",
    "customer",
    "customer_creation",
    "customer_email",
    "customer_update",
    "expires_at",
    "invoice_creation",
    "line_items",
    "locale",
    "metadata",
    "mode",
    "origin_context",
    "payment_intent_data",
    "payment_method_collection",
    "payment_method_types",
    "phone_number_collection",
    "saved_payment_method_options",
    "submit_type",
    "subscription_data",
    "success_url",
    "tax_id_collection",
    "ui_mode",
)


def create_session(world: World, call: Call) -> Json:
    params = call.params
    params.only(KNOWN)
    mode = params.choice("mode", MODES)
    if mode is None:
        raise ApiError.missing_param("mode")
    if mode == "setup" or params.choice("ui_mode", ("hosted_page",), "hosted_page") != "hosted_page":
        raise ApiError.invalid("This emulator has hosted pages in the modes payment and subscription.", param="mode")
    name = params.text("customer")
    customer = world.need("customer", name, param="customer") if name else None
    if customer is not None and "customer_email" in params:
        raise ApiError.invalid(
            "You may only specify one of these parameters: customer, customer_email.", param="customer"
        )
    lines = [_line(world, part, mode) for part in params.parts("line_items")]
    if not lines:
        raise ApiError.missing_param("line_items")
    body = _new_body(world, params, mode, customer, lines)
    return world.add(body, due_at=body["expires_at"])


def _line(world: World, part: Params, mode: str) -> Json:
    part.only(("adjustable_quantity", "metadata", "price", "price_data", "quantity"))
    price = _line_price(world, part)
    if mode == "payment" and price["type"] == "recurring":
        raise ApiError.invalid("You specified `payment` mode but passed a recurring price.", param=part.name("price"))
    is_metered = inner(price, "recurring").get("usage_type") == "metered"
    quantity = part.number("quantity")
    if quantity is None and not is_metered:
        raise ApiError.invalid(f"Quantity is required. Add `quantity` to `{part.path}`", param=part.name("quantity"))
    amount = 0 if is_metered else amount_of(price, quantity or 0)
    product = world.store.find(price["product"]) or {}
    return {
        "id": world.new_id("li"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": product.get("name"),
        "metadata": {},
        "price": price,
        "quantity": quantity,
    }


def _line_price(world: World, part: Params) -> Json:
    name = part.text("price")
    if name is None:
        data = part.part("price_data")
        product = data.text("product") or new_product(world, {"name": data.part("product_data").need("name")})["id"]
        price = price_from(world, data, product, active=False) | {"_is_inline": True}
        world.store.put(price)
        return price
    price = world.need("price", name, param=part.name("price"))
    if not price["active"]:
        raise ApiError.invalid("The price specified is inactive.", param=part.name("price"))
    return price


def _expiry(params: Params, now: int) -> int:
    moment = params.number("expires_at") or now + DAY_S
    if not now + SHORTEST_S - 60 <= moment <= now + DAY_S:
        raise ApiError.invalid(
            "The `expires_at` timestamp must be between 30 minutes and 24 hours from now.", param="expires_at"
        )
    return moment


def _new_body(world: World, params: Params, mode: str, customer: Json | None, lines: list[Json]) -> Json:
    session_id = world.new_id("cs_test")
    now = world.now((customer or {}).get("test_clock"))
    recurring = [line for line in lines if line["price"]["type"] == "recurring"]
    if mode == "subscription" and not recurring:
        raise ApiError.invalid(
            "You must provide at least one recurring price in `subscription` mode.", param="line_items"
        )
    data = params.part("subscription_data")
    total = sum(line["amount_total"] for line in lines)
    if mode == "subscription" and (data.number("trial_period_days") or data.text("trial_end")):
        total = 0
    email = (customer or {}).get("email") or params.text("customer_email")
    return {
        "id": session_id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "after_expiration": None,
        "allow_promotion_codes": params.flag("allow_promotion_codes"),
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": params.text("billing_address_collection"),
        "cancel_url": params.text("cancel_url"),
        "client_reference_id": params.text("client_reference_id"),
        "client_secret": None,
        "collected_information": {"business_name": None, "individual_name": None, "shipping_details": None},
        "consent": None,
        "consent_collection": None,
        "created": now,
        "currency": lines[0]["currency"],
        "currency_conversion": None,
        "custom_fields": [],
        "custom_text": dict.fromkeys(
            ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance"),
        ),
        "customer": customer["id"] if customer else None,
        "customer_account": None,
        "customer_creation": None
        if customer or mode == "subscription"
        else params.text("customer_creation") or "if_required",
        "customer_details": _customer_details(email, customer) if email else None,
        "customer_email": params.text("customer_email"),
        "discounts": [],
        "expires_at": _expiry(params, now),
        "integration_identifier": None,
        "invoice": None,
        "invoice_creation": None if mode == "subscription" else {"enabled": False, "invoice_data": {}},
        "livemode": False,
        "locale": params.text("locale"),
        "managed_payments": {"enabled": False},
        "metadata": merge_metadata({}, params),
        "mode": mode,
        "origin_context": None,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": params.choice("payment_method_collection", ("always", "if_required"), "always"),
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "permissions": None,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "saved_payment_method_options": None,
        "setup_intent": None,
        "shipping_address_collection": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": "open",
        "submit_type": params.text("submit_type"),
        "subscription": None,
        "success_url": params.need("success_url"),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{world.settings.public_url}/checkout/{session_id}",
        "wallet_options": None,
        "_clock": (customer or {}).get("test_clock"),
        "_lines": lines,
        "_subscription_data": data.tree,
        "_payment_data": params.part("payment_intent_data").tree,
    }


def _customer_details(email: str, customer: Json | None) -> Json:
    known = customer or {}
    return {
        "address": known.get("address"),
        "business_name": None,
        "email": email,
        "individual_name": None,
        "name": known.get("name"),
        "phone": known.get("phone"),
        "tax_exempt": "none",
        "tax_ids": [],
    }


def complete(world: World, session_id: str, *, card: str = "pm_card_visa", email: str | None = None) -> Json:
    """Pay at the page. A declined card raises a 402 and leaves the session open, as a shopper would see it."""
    before = world.need("checkout.session", session_id)
    if before["status"] != "open":
        raise ApiError.invalid(f"This Checkout Session is {before['status']}; only an open one can be completed.")
    after = copied(before)
    customer = _customer_of(world, before, email)
    if customer is not None:
        after["customer"] = customer["id"]
        if card not in customers.CARDS:
            raise ApiError.invalid("This emulator knows only Stripe's documented test cards.", param="card")
        method = customers.attach(world, card, customer["id"])
        if before["mode"] == "subscription":
            after |= _subscribe(world, before, customer, method)
        else:
            after |= _charge(world, before, customer, method)
    details = _customer_details(email or (customer or {}).get("email") or "", customer)
    after |= {"status": "complete", "url": None, "customer_details": details}
    world.store.put(after)
    world.emit("checkout.session.completed", after)
    return after


def _customer_of(world: World, session: Json, email: str | None) -> Json | None:
    if session["customer"] is not None:
        return world.need("customer", session["customer"])
    address = email or session["customer_email"] or "shopper@example.com"
    return customers.new_customer(world, {"email": address, "name": "Test Shopper"})


def _subscribe(world: World, session: Json, customer: Json, method: Json) -> Json:
    data = dict(cast("Json", session["_subscription_data"]))
    known = {"billing_cycle_anchor", "description", "metadata", "trial_end", "trial_period_days", "trial_settings"}
    wanted = [
        {"price": line["price"]["id"]} | ({} if line["quantity"] is None else {"quantity": line["quantity"]})
        for line in session["_lines"]
        if line["price"]["type"] == "recurring"
    ]
    params = Params(
        {name: value for name, value in data.items() if name in known}
        | {
            "items": from_json(wanted),
            "default_payment_method": method["id"],
            "payment_behavior": "error_if_incomplete",
        }
    )
    subscription = subscriptions.start(world, params, customer)
    is_free = subscription["status"] == "trialing" or session["amount_total"] == 0
    return {
        "subscription": subscription["id"],
        "invoice": subscription["latest_invoice"],
        "payment_status": "no_payment_required" if is_free else "paid",
    }


def _charge(world: World, session: Json, customer: Json, method: Json) -> Json:
    if session["amount_total"] == 0:
        return {"payment_status": "no_payment_required"}
    metadata = inner(session["_payment_data"], "metadata")
    intent = payments.new_intent(
        world,
        amount=session["amount_total"],
        currency=session["currency"],
        customer=customer["id"],
        fields={"metadata": metadata},
    )
    intent, decline = payments.attempt(world, intent, method["id"])
    if decline is not None:
        raise ApiError.declined(decline, keeps_effects=False)
    return {"payment_intent": intent["id"], "payment_status": "paid"}


def expire(world: World, before: Json) -> Json:
    after: Json = copied(before) | {"status": "expired", "url": None}
    world.store.put(after)
    world.emit("checkout.session.expired", after)
    return after


def expire_session(world: World, call: Call) -> Json:
    call.params.only(())
    before = world.need("checkout.session", call.ids[0])
    if before["status"] != "open":
        raise ApiError.invalid(
            f'Only Checkout Sessions with a status in ["open"] can be expired. This one is {before["status"]}.'
        )
    return expire(world, before)


def update_session(world: World, call: Call) -> Json:
    call.params.only(("metadata",))
    before = world.need("checkout.session", call.ids[0])
    after: Json = copied(before) | {"metadata": merge_metadata(before["metadata"], call.params)}
    due = before["expires_at"] if before["status"] == "open" else None
    return world.change(before, after, due_at=due)


def retrieve_session(world: World, call: Call) -> Json:
    return world.need("checkout.session", call.ids[0])


def list_sessions(world: World, call: Call) -> Json:
    params = call.params
    params.only((*LIST_PARAMS, "customer", "payment_intent", "status", "subscription"))
    status, subscription = params.text("status"), params.text("subscription")
    intent = params.text("payment_intent")

    def keep(body: Json) -> bool:
        return (
            status in {None, body["status"]}
            and subscription in {None, body["subscription"]}
            and intent in {None, body["payment_intent"]}
        )

    return page(world, call, "checkout.session", owner=params.text("customer"), keep=keep)


def session_lines(_world: World, session: Json) -> Json:
    """The `line_items` of a session, which exist only when expanded."""
    return list_of(session["_lines"], f"/v1/checkout/sessions/{session['id']}/line_items")


def list_session_lines(world: World, call: Call) -> Json:
    return session_lines(world, world.need("checkout.session", call.ids[0]))


def redirect_url(session: Json) -> str:
    """Where the shopper goes after paying, with the session's id filled in."""
    return cast("str", session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])


ROUTES: list[Route] = [
    ("POST", "/v1/checkout/sessions", create_session),
    ("GET", "/v1/checkout/sessions", list_sessions),
    ("GET", "/v1/checkout/sessions/{id}", retrieve_session),
    ("POST", "/v1/checkout/sessions/{id}", update_session),
    ("POST", "/v1/checkout/sessions/{id}/expire", expire_session),
    ("GET", "/v1/checkout/sessions/{id}/line_items", list_session_lines),
]

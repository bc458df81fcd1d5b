"""Customers, and the payment methods they pay with."""

from typing import cast

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params, merge_metadata
from devkit.stripe.rendering import LIST_PARAMS, page, search_page
from devkit.stripe.world import Call, Route, World, copied

NO_ADDRESS: Json = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
FIELDS = ("name", "email", "description", "phone", "tax_exempt", "business_name", "individual_name")
PLAIN = ("address", "shipping", "preferred_locales")
KNOWN = (*FIELDS, *PLAIN, "metadata", "invoice_settings", "balance", "invoice_prefix", "next_invoice_sequence")

# What a card does, by the test names and numbers that Stripe documents: None pays, a word is the decline code.
# "attach:" means that the card is refused already when it is attached.
CARDS = {
    "pm_card_visa": None,
    "pm_card_mastercard": None,
    "pm_card_us": None,
    "pm_card_chargeCustomerFail": "card_declined",
    "pm_card_chargeDeclined": "attach:card_declined",
    "pm_card_visa_chargeDeclined": "attach:card_declined",
    "pm_card_chargeDeclinedInsufficientFunds": "attach:insufficient_funds",
    "pm_card_authenticationRequired": "authentication_required",
}
NUMBERS = {
    "4242424242424242": "pm_card_visa",
    "5555555555554444": "pm_card_mastercard",
    "4000000000000341": "pm_card_chargeCustomerFail",
    "4000000000000002": "pm_card_chargeDeclined",
    "4000000000009995": "pm_card_chargeDeclinedInsufficientFunds",
    "4000002500003155": "pm_card_authenticationRequired",
    "4000002760003184": "pm_card_authenticationRequired",
    "tok_visa": "pm_card_visa",
    "tok_mastercard": "pm_card_mastercard",
    "tok_chargeCustomerFail": "pm_card_chargeCustomerFail",
    "tok_chargeDeclined": "pm_card_chargeDeclined",
}
LAST4 = {test_name: number[-4:] for number, test_name in NUMBERS.items() if number.isdigit()}


def new_customer(world: World, fields: Json, *, test_clock: str | None = None) -> Json:
    """Store and announce a customer with the given fields over the defaults."""
    body: Json = {
        "id": world.new_id("cus"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": world.now(test_clock),
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": world.new_id("x")[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": test_clock,
    }
    return world.add(body | fields, "customer.created")


def create_customer(world: World, call: Call) -> Json:
    params = call.params
    params.only((*KNOWN, "test_clock", "payment_method", "cash_balance", "tax", "tax_id_data", "source"))
    clock = params.text("test_clock")
    if clock is not None:
        world.need("test_helpers.test_clock", clock, param="test_clock", noun="test clock")
    body = new_customer(world, _given(params, {}), test_clock=clock)
    default = params.part("invoice_settings").text("default_payment_method")
    offered = params.text("payment_method")
    if offered or default:
        method = attach(world, offered or default or "", body["id"])
        if default:
            body = set_default_method(world, body["id"], method["id"])
    return body


def _given(params: Params, current: Json) -> Json:
    fields: Json = {name: params.text(name) for name in FIELDS if name in params}
    fields |= {name: params.plain(name) or None for name in PLAIN if name in params}
    if isinstance(fields.get("address"), dict):
        fields["address"] = NO_ADDRESS | cast("Json", fields["address"])
    if "balance" in params:
        fields["balance"] = params.number("balance") or 0
    if "tax_exempt" in fields:
        fields["tax_exempt"] = params.choice("tax_exempt", ("none", "exempt", "reverse"), "none")
    email = fields.get("email")
    if email is not None and "@" not in str(email):
        raise ApiError.invalid(f"Invalid email address: {email}", param="email", code="email_invalid")
    fields["metadata"] = merge_metadata(cast("dict[str, str]", current.get("metadata", {})), params)
    return fields


def update_customer(world: World, call: Call) -> Json:
    params = call.params
    params.only((*KNOWN, "default_source", "cash_balance", "tax", "source"))
    before = world.need("customer", call.ids[0])
    after = copied(before) | _given(params, before)
    settings = params.part("invoice_settings")
    if "default_payment_method" in settings:
        name = settings.text("default_payment_method")
        if name is not None:
            _need_own_method(world, name, before["id"])
        after["invoice_settings"]["default_payment_method"] = name
    return world.change(before, after, "customer.updated")


def _need_own_method(world: World, method_id: str, customer: str) -> None:
    method = world.need("payment_method", method_id, param="payment_method", noun="PaymentMethod")
    if method["customer"] != customer:
        raise ApiError.invalid(
            "The customer does not have a payment method with the ID "
            f"{method_id}. The payment method must be attached to the customer.",
            param="invoice_settings[default_payment_method]",
        )


def retrieve_customer(world: World, call: Call) -> Json:
    found = world.store.find(call.ids[0], "customer")
    if found is None:
        raise ApiError.not_found("customer", call.ids[0])
    return found


def list_customers(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "email", "test_clock"))
    email, clock = call.params.text("email"), call.params.text("test_clock")
    return page(
        world, call, "customer", keep=lambda c: (email is None or c["email"] == email) and c["test_clock"] == clock
    )


def search_customers(world: World, call: Call) -> Json:
    call.params.only(("query", "limit", "page"))
    return search_page(world, call, "customer")


def new_method(world: World, test_name: str) -> Json:
    """A stored card of the kind that one of Stripe's test names stands for, not attached yet."""
    body: Json = {
        "id": world.new_id("pm"),
        "object": "payment_method",
        "_behaviour": CARDS[test_name],
        "allow_redisplay": "unspecified",
        "billing_details": {"address": NO_ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "card": {
            "brand": "mastercard" if "mastercard" in test_name else "visa",
            "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
            "country": "US",
            "display_brand": "mastercard" if "mastercard" in test_name else "visa",
            "exp_month": 12,
            "exp_year": 2040,
            "fingerprint": test_name.removeprefix("pm_card_").ljust(16, "0")[:16],
            "funding": "credit",
            "generated_from": None,
            "last4": LAST4.get(test_name, "4242"),
            "networks": {"available": ["visa"], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        },
        "created": world.now(),
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }
    return world.add(body)


def attach(world: World, method_id: str, customer: str) -> Json:
    """Attach a card to a customer; a test name makes a new card first. Declining cards raise here."""
    before = new_method(world, method_id) if method_id in CARDS else world.need("payment_method", method_id)
    behaviour = str(before["_behaviour"] or "")
    if behaviour.startswith("attach:"):
        raise ApiError.declined(behaviour.removeprefix("attach:"), keeps_effects=False)
    owner = world.need("customer", customer, param="customer")
    if before["customer"] not in {None, customer}:
        raise ApiError.invalid("The payment method you provided has already been attached to a customer.")
    after: Json = copied(before) | {"customer": owner["id"]}
    world.store.put(after)
    world.emit("payment_method.attached", after)
    return after


def set_default_method(world: World, customer: str, method_id: str) -> Json:
    before = world.need("customer", customer)
    after = copied(before)
    after["invoice_settings"]["default_payment_method"] = method_id
    return world.change(before, after, "customer.updated")


def create_method(world: World, call: Call) -> Json:
    call.params.only(("type", "card", "billing_details", "metadata", "customer", "allow_redisplay"))
    call.params.choice("type", ("card",))
    card = call.params.part("card")
    number = card.text("number") or card.text("token") or "4242424242424242"
    if number not in NUMBERS:
        raise ApiError.invalid("This emulator knows only Stripe's documented test cards.", param="card[number]")
    return new_method(world, NUMBERS[number])


def attach_method(world: World, call: Call) -> Json:
    call.params.only(("customer",))
    return attach(world, call.ids[0], call.params.need("customer"))


def detach_method(world: World, call: Call) -> Json:
    before = world.need("payment_method", call.ids[0], noun="PaymentMethod")
    owner = before["customer"]
    if owner is None:
        raise ApiError.invalid(
            "The payment method you provided is not attached to a customer so detachment is impossible."
        )
    after: Json = copied(before) | {"customer": None}
    world.store.put(after)
    world.emit("payment_method.detached", after, {"customer": owner})
    customer = world.store.find(owner)
    if customer and not customer.get("deleted"):
        changed = copied(customer)
        if changed["invoice_settings"]["default_payment_method"] == after["id"]:
            changed["invoice_settings"]["default_payment_method"] = None
            world.change(customer, changed, "customer.updated")
    return after


def retrieve_method(world: World, call: Call) -> Json:
    return world.need("payment_method", call.ids[-1], noun="PaymentMethod")


def list_methods(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "customer", "type", "allow_redisplay"))
    owner = call.ids[0] if call.ids else call.params.text("customer")
    if owner is None:
        return {"object": "list", "data": [], "has_more": False, "url": call.path}
    world.need("customer", owner, param=None if call.ids else "customer")
    return page(world, call, "payment_method", owner=owner)


ROUTES: list[Route] = [
    ("POST", "/v1/customers", create_customer),
    ("GET", "/v1/customers", list_customers),
    ("GET", "/v1/customers/search", search_customers),
    ("GET", "/v1/customers/{id}", retrieve_customer),
    ("POST", "/v1/customers/{id}", update_customer),
    ("GET", "/v1/customers/{id}/payment_methods", list_methods),
    ("GET", "/v1/customers/{id}/payment_methods/{id}", retrieve_method),
    ("POST", "/v1/payment_methods", create_method),
    ("GET", "/v1/payment_methods", list_methods),
    ("GET", "/v1/payment_methods/{id}", retrieve_method),
    ("POST", "/v1/payment_methods/{id}/attach", attach_method),
    ("POST", "/v1/payment_methods/{id}/detach", detach_method),
]

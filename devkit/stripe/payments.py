"""Moving (pretended) money: payment intents, charges, refunds and disputes."""

from typing import cast

from devkit.stripe.customers import NO_ADDRESS
from devkit.stripe.errors import DECLINE_MESSAGES, ApiError, Json
from devkit.stripe.forms import merge_metadata
from devkit.stripe.rendering import LIST_PARAMS, list_of, page
from devkit.stripe.world import DAY_S, Call, Route, World, copied

OUTCOMES = ("succeed", "card_declined", "insufficient_funds", "expired_card", "authentication_required")
NO_METHOD = "no_payment_method"


def new_intent(world: World, *, amount: int, currency: str, customer: str | None, fields: Json | None = None) -> Json:
    intent_id = world.new_id("pi")
    body: Json = {
        "id": intent_id,
        "object": "payment_intent",
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic",
        "client_secret": f"{intent_id}_secret_{world.new_id('x')[2:]}",
        "confirmation_method": "automatic",
        "created": world.now(clock_of(world, customer)),
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "description": None,
        "excluded_payment_method_types": None,
        "last_payment_error": None,
        "latest_charge": None,
        "livemode": False,
        "managed_payments": None,
        "metadata": {},
        "next_action": None,
        "on_behalf_of": None,
        "payment_method": None,
        "payment_method_configuration_details": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_record": None,
        "processing": None,
        "receipt_email": None,
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "requires_payment_method",
        "transfer_data": None,
        "transfer_group": None,
    }
    return world.add(body | (fields or {}), "payment_intent.created")


def clock_of(world: World, customer: str | None) -> str | None:
    """The test clock a customer lives on."""
    found = world.store.find(customer) if customer else None
    return None if found is None else found.get("test_clock")


def decide(world: World, customer: str | None, method: Json) -> str | None:
    """None when the payment goes through, else the decline code; a planned outcome comes before the card's own."""
    row = world.store.sql.execute(
        "SELECT id, outcome FROM outcomes WHERE customer IN (?, '*') ORDER BY id LIMIT 1", (customer or "",)
    ).fetchone()
    if row is None:
        return cast("str | None", method["_behaviour"])
    world.store.sql.execute("DELETE FROM outcomes WHERE id = ?", (row["id"],))
    world.spent.append(row["id"])
    return None if row["outcome"] == "succeed" else cast("str", row["outcome"])


def attempt(world: World, intent: Json, method_id: str | None) -> tuple[Json, str | None]:
    """Try to collect an intent; gives the intent after it and the decline code, if any."""
    method = world.store.find(method_id, "payment_method") if method_id else None
    if method is None:
        return intent, NO_METHOD
    decline = decide(world, intent["customer"], method)
    after: Json = copied(intent) | {"payment_method": method["id"]}
    if decline == "authentication_required":
        after |= {"status": "requires_action", "next_action": {"type": "use_stripe_sdk", "use_stripe_sdk": {}}}
        return world.change(intent, after, "payment_intent.requires_action"), decline
    charge = _new_charge(world, intent, method, decline)
    after["latest_charge"] = charge["id"]
    if decline is not None:
        problem = ApiError.declined(decline, keeps_effects=True, charge=charge["id"]).body()["error"]
        after |= {"status": "requires_payment_method", "payment_method": None, "last_payment_error": problem}
        return world.change(intent, after, "payment_intent.payment_failed"), decline
    after |= {"status": "succeeded", "amount_received": intent["amount"], "last_payment_error": None}
    after["next_action"] = None
    return world.change(intent, after, "payment_intent.succeeded"), None


def _new_charge(world: World, intent: Json, method: Json, decline: str | None) -> Json:
    charge_id = world.new_id("ch")
    paid = decline is None
    card = cast("Json", method["card"])
    body: Json = {
        "id": charge_id,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": world.new_id("txn") if paid else None,
        "billing_details": {"address": NO_ADDRESS, "email": None, "name": None, "phone": None, "tax_id": None},
        "calculated_statement_descriptor": "VENTURE",
        "captured": paid,
        "created": world.now(clock_of(world, intent["customer"])),
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": decline,
        "failure_message": None if decline is None else DECLINE_MESSAGES.get(decline, "Your card was declined."),
        "fraud_details": {},
        "livemode": False,
        "metadata": dict(intent["metadata"]),
        "on_behalf_of": None,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network" if paid else "declined_by_network",
            "reason": decline,
            "seller_message": "Payment complete." if paid else "The bank did not accept it.",
            "type": "authorized" if paid else "issuer_declined",
        },
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": {
            "card": {name: card[name] for name in ("brand", "country", "exp_month", "exp_year", "funding", "last4")}
            | {"checks": card["checks"], "network": card["brand"], "wallet": None, "three_d_secure": None},
            "type": "card",
        },
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": f"{world.settings.public_url}/receipts/{charge_id}" if paid else None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded" if paid else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }
    return world.add(body, "charge.succeeded" if paid else "charge.failed")


def retrieve_intent(world: World, call: Call) -> Json:
    return world.need("payment_intent", call.ids[0])


def list_intents(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "customer"))
    return page(world, call, "payment_intent", owner=call.params.text("customer"))


def confirm_intent(world: World, call: Call) -> Json:
    """Pay an intent that belongs to no invoice."""
    call.params.only(("payment_method", "return_url", "off_session"))
    intent = world.need("payment_intent", call.ids[0])
    if intent["status"] in {"succeeded", "canceled"}:
        raise ApiError.invalid(
            f"This PaymentIntent's payment_method could not be updated because it has a status of {intent['status']}.",
            code="payment_intent_unexpected_state",
        )
    after, decline = attempt(world, intent, call.params.text("payment_method") or intent["payment_method"])
    if decline == NO_METHOD:
        raise ApiError.missing_param("payment_method")
    if decline not in {None, "authentication_required"}:
        raise ApiError.declined(str(decline), keeps_effects=True, payment_intent=after)
    return after


def retrieve_charge(world: World, call: Call) -> Json:
    return world.need("charge", call.ids[0])


def list_charges(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "customer", "payment_intent"))
    intent = call.params.text("payment_intent")
    owner = call.params.text("customer")
    return page(world, call, "charge", owner=owner, keep=lambda c: intent in {None, c["payment_intent"]})


def create_refund(world: World, call: Call) -> Json:
    params = call.params
    params.only(("amount", "charge", "payment_intent", "reason", "metadata"))
    charge = _named_charge(world, call)
    left = charge["amount_captured"] - charge["amount_refunded"]
    amount = params.number("amount") or left
    if left == 0:
        raise ApiError.invalid(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    if not 0 < amount <= left:
        raise ApiError.invalid(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", param="amount"
        )
    body: Json = {
        "id": world.new_id("re"),
        "object": "refund",
        "_charge_customer": charge["customer"],
        "amount": amount,
        "balance_transaction": world.new_id("txn"),
        "charge": charge["id"],
        "created": world.now(clock_of(world, charge["customer"])),
        "currency": charge["currency"],
        "customer": charge["customer"],
        "customer_account": None,
        "destination_details": {"card": {"reference_status": "pending", "type": "refund"}, "type": "card"},
        "failure_balance_transaction": None,
        "metadata": merge_metadata({}, params),
        "payment_intent": charge["payment_intent"],
        "payment_method": charge["payment_method"],
        "pending_reason": None,
        "reason": params.choice("reason", ("duplicate", "fraudulent", "requested_by_customer")),
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }
    world.add(body, "refund.created")
    refunded = charge["amount_refunded"] + amount
    after: Json = copied(charge) | {"amount_refunded": refunded, "refunded": refunded == charge["amount_captured"]}
    world.change(charge, after, "charge.refunded")
    return body


def _named_charge(world: World, call: Call) -> Json:
    name = call.params.text("charge")
    if name is not None:
        return world.need("charge", name, param="charge")
    intent = world.need("payment_intent", call.params.need("payment_intent"), param="payment_intent")
    if intent["latest_charge"] is None or intent["status"] != "succeeded":
        raise ApiError.invalid(
            "This PaymentIntent does not have a successful charge to refund.", param="payment_intent"
        )
    return world.need("charge", intent["latest_charge"])


def retrieve_refund(world: World, call: Call) -> Json:
    return world.need("refund", call.ids[0])


def list_refunds(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "charge", "payment_intent"))
    charge, intent = call.params.text("charge"), call.params.text("payment_intent")
    return page(
        world,
        call,
        "refund",
        keep=lambda r: charge in {None, r["charge"]} and intent in {None, r["payment_intent"]},
    )


def charge_refunds(world: World, charge: Json) -> Json:
    """The `refunds` of a charge, which exist only when expanded."""
    found = [refund for refund in world.store.newest_first("refund") if refund["charge"] == charge["id"]]
    return list_of(found, f"/v1/charges/{charge['id']}/refunds")


def open_dispute(world: World, charge_id: str, reason: str) -> Json:
    """A cardholder disputes a charge; only the control API can say so."""
    charge = world.need("charge", charge_id, param="charge")
    if charge["disputed"] or not charge["paid"]:
        raise ApiError.invalid("Only a paid charge that is not disputed yet can be disputed.", param="charge")
    body: Json = {
        "id": world.new_id("dp"),
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": world.now(),
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": world.now() + 9 * DAY_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {"brand": "visa", "case_type": "chargeback", "network_reason_code": "10.4"},
            "type": "card",
        },
        "reason": reason,
        "status": "needs_response",
    }
    world.change(charge, copied(charge) | {"disputed": True}, "charge.updated")
    world.emit("charge.dispute.funds_withdrawn", body)
    return world.add(body, "charge.dispute.created")


def retrieve_dispute(world: World, call: Call) -> Json:
    return world.need("dispute", call.ids[0])


def update_dispute(world: World, call: Call) -> Json:
    """Hand in evidence; with `submit` the dispute is under review."""
    params = call.params
    params.only(("evidence", "metadata", "submit"))
    before = world.need("dispute", call.ids[0])
    after: Json = copied(before) | {"metadata": merge_metadata(before["metadata"], params)}
    if "evidence" in params:
        after["evidence"] |= params.plain("evidence") or {}
        after["evidence_details"]["has_evidence"] = True
    if params.flag("submit"):
        after["status"] = "under_review"
        after["evidence_details"]["submission_count"] += 1
    return world.change(before, after, "charge.dispute.updated")


def close_dispute(world: World, call: Call) -> Json:
    return end_dispute(world, call.ids[0], "lost")


def end_dispute(world: World, dispute_id: str, status: str) -> Json:
    """Close a dispute as `won` or `lost`."""
    before = world.need("dispute", dispute_id)
    after = world.change(before, copied(before) | {"status": status}, "charge.dispute.closed")
    if status == "won":
        world.emit("charge.dispute.funds_reinstated", after)
    return after


def list_disputes(world: World, call: Call) -> Json:
    call.params.only((*LIST_PARAMS, "charge", "payment_intent"))
    charge = call.params.text("charge")
    return page(world, call, "dispute", keep=lambda d: charge in {None, d["charge"]})


ROUTES: list[Route] = [
    ("GET", "/v1/payment_intents", list_intents),
    ("GET", "/v1/payment_intents/{id}", retrieve_intent),
    ("POST", "/v1/payment_intents/{id}/confirm", confirm_intent),
    ("GET", "/v1/charges", list_charges),
    ("GET", "/v1/charges/{id}", retrieve_charge),
    ("POST", "/v1/refunds", create_refund),
    ("GET", "/v1/refunds", list_refunds),
    ("GET", "/v1/refunds/{id}", retrieve_refund),
    ("GET", "/v1/disputes", list_disputes),
    ("GET", "/v1/disputes/{id}", retrieve_dispute),
    ("POST", "/v1/disputes/{id}", update_dispute),
    ("POST", "/v1/disputes/{id}/close", close_dispute),
]

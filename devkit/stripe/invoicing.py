"""The making of invoices: lines, totals, numbers, and the payment that belongs to each."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import cast

from devkit.stripe.errors import Json
from devkit.stripe.payments import attempt, new_intent
from devkit.stripe.rendering import list_of
from devkit.stripe.world import DAY_S, World, copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What makes one invoice differ from another. Times are Unix seconds, amounts minor units."""

    customer: Json
    reason: str
    period: tuple[int, int]
    lines: Sequence[Json]
    currency: str
    subscription: Json | None = None
    auto_advance: bool = True


def amount_of(price: Json, quantity: int | Decimal) -> int:
    """Minor units, a half rounded up."""
    exact = Decimal(cast("str", price["unit_amount_decimal"])) * quantity
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def subscription_line(
    world: World, item: Json, *, subscription: str, period: tuple[int, int], quantity: int | Decimal
) -> Json:
    """A line for one item of a subscription over a period."""
    price = cast("Json", item["price"])
    product = world.store.find(price["product"]) or {}
    amount = amount_of(price, quantity)
    return {
        **_line_base(world, amount=amount, currency=price["currency"], period=period),
        "description": f"{quantity} x {product.get('name', price['product'])}",
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": subscription,
                "subscription_item": item["id"],
            },
            "type": "subscription_item_details",
        },
        "pricing": _pricing(price),
        "quantity": int(quantity),
        "quantity_decimal": format(Decimal(quantity), "f"),
        "subscription": subscription,
    }


def item_line(world: World, invoice_item: Json) -> Json:
    """A line for a pending invoice item, such as a proration."""
    period = cast("Json", invoice_item["period"])
    details = cast("Json", (invoice_item["parent"] or {}).get("subscription_details") or {})
    return {
        **_line_base(
            world,
            amount=invoice_item["amount"],
            currency=invoice_item["currency"],
            period=(period["start"], period["end"]),
        ),
        "description": invoice_item["description"],
        "parent": {
            "invoice_item_details": {
                "invoice_item": invoice_item["id"],
                "proration": invoice_item["proration"],
                "proration_details": {"credited_items": None},
                "subscription": details.get("subscription"),
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "pricing": invoice_item["pricing"],
        "quantity": invoice_item["quantity"],
        "quantity_decimal": str(invoice_item["quantity"]),
        "subscription": details.get("subscription"),
    }


def _line_base(world: World, *, amount: int, currency: str, period: tuple[int, int]) -> Json:
    return {
        "id": world.new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "period": {"start": period[0], "end": period[1]},
        "pretax_credit_amounts": [],
        "subtotal": amount,
        "taxes": [],
    }


def _pricing(price: Json) -> Json:
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def new_invoice_item(
    world: World,
    *,
    customer: Json,
    amount: int,
    currency: str,
    description: str,
    period: tuple[int, int],
    price: Json | None = None,
    subscription: str | None = None,
    proration: bool = False,
) -> Json:
    """A charge or credit that waits for the customer's (or the subscription's) next invoice."""
    body: Json = {
        "id": world.new_id("ii"),
        "object": "invoiceitem",
        "_subscription": subscription,
        "amount": amount,
        "created": world.now(customer["test_clock"]),
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "date": world.now(customer["test_clock"]),
        "description": description,
        "discountable": not proration,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "net_amount": amount,
        "parent": None
        if subscription is None
        else {"subscription_details": {"subscription": subscription}, "type": "subscription_details"},
        "period": {"start": period[0], "end": period[1]},
        "pricing": None if price is None else _pricing(price),
        "proration": proration,
        "quantity": 1,
        "quantity_decimal": "1",
        "tax_rates": [],
        "test_clock": customer["test_clock"],
    }
    return world.add(body, "invoiceitem.created")


def take_pending(world: World, customer: str, subscription: str | None) -> list[Json]:
    """The lines of the items that wait for this invoice; the caller names the invoice on them with `claim`."""
    return [
        item_line(world, item)
        for item in world.store.oldest_first("invoiceitem", owner=customer)
        if item["invoice"] is None and item["_subscription"] in {None, subscription}
    ]


def new_invoice(world: World, draft: Draft) -> Json:
    """Store and announce a draft. It finalizes by itself after a while when `auto_advance` is set."""
    customer, subscription = draft.customer, draft.subscription
    clock = customer["test_clock"]
    now = world.now(clock)
    invoice_id = world.new_id("in")
    lines = [{**line, "invoice": invoice_id} for line in draft.lines]
    total = sum(cast("int", line["amount"]) for line in lines)
    settings = subscription or {}
    body: Json = {
        "id": invoice_id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Local emulator",
        "account_tax_ids": None,
        "amount_due": max(total, 0),
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": max(total, 0),
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": draft.auto_advance,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": now + world.settings.finalize_after_s if draft.auto_advance else None,
        "billing_reason": draft.reason,
        "collection_method": settings.get("collection_method", "charge_automatically"),
        "created": now,
        "currency": draft.currency,
        "custom_fields": None,
        "customer": customer["id"],
        "customer_account": None,
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_phone": customer["phone"],
        "customer_shipping": customer["shipping"],
        "customer_tax_exempt": customer["tax_exempt"],
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": list_of(lines, f"/v1/invoices/{invoice_id}/lines"),
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": now + world.settings.finalize_after_s if draft.auto_advance else None,
        "number": None,
        "on_behalf_of": None,
        "parent": None
        if subscription is None
        else {
            "quote_details": None,
            "subscription_details": {"metadata": subscription["metadata"], "subscription": subscription["id"]},
            "type": "subscription_details",
        },
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": draft.period[1],
        "period_start": draft.period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": customer["balance"],
        "statement_descriptor": None,
        "status": "draft",
        "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "test_clock": clock,
        "total": total,
        "total_discount_amounts": [],
        "total_excluding_tax": total,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": now,
        "_days_until_due": settings.get("days_until_due"),
    }
    _claim(world, lines)
    world.store.put(body, due_at=due_at(body))
    world.emit("invoice.created", body)
    return body


def _claim(world: World, lines: Sequence[Json]) -> None:
    for line in lines:
        details = cast("Json", line["parent"].get("invoice_item_details") or {})
        name = details.get("invoice_item")
        item = world.store.find(name) if name else None
        if item is not None:
            world.store.put(item | {"invoice": line["invoice"]})


def due_at(invoice: Json) -> int | None:
    """When the invoice's clock has work for it: to finalize it, or to try the payment again."""
    if invoice["status"] == "draft" and invoice["auto_advance"]:
        return cast("int | None", invoice["automatically_finalizes_at"])
    if invoice["status"] == "open":
        return cast("int | None", invoice["next_payment_attempt"])
    return None


def save(world: World, before: Json, after: Json, event: str | None = "invoice.updated") -> Json:
    return world.change(before, after, event, due_at=due_at(after))


def finalize(world: World, before: Json) -> Json:
    """Open a draft: it gets its number, its page, its payment, and the customer's balance is applied."""
    after = copied(before)
    customer = world.need("customer", before["customer"])
    now = world.now(before["test_clock"])
    sequence = customer["next_invoice_sequence"]
    balance = before["total"] + customer["balance"]
    page = f"{world.settings.public_url}/invoice/{before['id']}"
    after |= {
        "status": "open",
        "number": f"{customer['invoice_prefix']}-{sequence:04d}",
        "starting_balance": customer["balance"],
        "ending_balance": min(balance, 0),
        "amount_due": max(balance, 0),
        "amount_remaining": max(balance, 0),
        "effective_at": now,
        "automatically_finalizes_at": None,
        "next_payment_attempt": None,
        "hosted_invoice_url": page,
        "invoice_pdf": f"{page}/pdf",
    }
    after["status_transitions"]["finalized_at"] = now
    if after["collection_method"] == "send_invoice":
        after["due_date"] = now + (after["_days_until_due"] or 30) * DAY_S
    world.change(
        customer,
        copied(customer) | {"next_invoice_sequence": sequence + 1, "balance": min(balance, 0)},
        "customer.updated" if balance != before["total"] or balance < 0 else None,
    )
    if after["amount_due"] > 0:
        _open_payment(world, after)
    world.store.put(after, due_at=due_at(after))
    world.emit("invoice.finalized", after)
    return after if after["amount_due"] > 0 else mark_paid(world, after)


def _open_payment(world: World, invoice: Json) -> None:
    intent = new_intent(
        world,
        amount=invoice["amount_due"],
        currency=invoice["currency"],
        customer=invoice["customer"],
        fields={"description": f"Invoice {invoice['number']}", "_invoice": invoice["id"]},
    )
    world.add(
        {
            "id": world.new_id("inpay"),
            "object": "invoice_payment",
            "_owner": invoice["id"],
            "amount_paid": None,
            "amount_requested": invoice["amount_due"],
            "created": world.now(invoice["test_clock"]),
            "currency": invoice["currency"],
            "invoice": invoice["id"],
            "is_default": True,
            "livemode": False,
            "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
            "status": "open",
            "status_transitions": {"canceled_at": None, "paid_at": None},
        }
    )
    invoice["_intent"] = intent["id"]


def payments_of(world: World, invoice: Json) -> list[Json]:
    return list(world.store.newest_first("invoice_payment", owner=invoice["id"]))


def try_payment(world: World, invoice: Json, method_id: str | None) -> tuple[Json, str | None]:
    """One attempt to collect an open invoice; gives the invoice after it and the decline code, if any."""
    intent = world.need("payment_intent", invoice["_intent"])
    intent, decline = attempt(world, intent, method_id)
    after = copied(invoice) | {"attempt_count": invoice["attempt_count"] + 1, "attempted": True}
    if decline is None:
        return mark_paid(world, after, intent), None
    world.store.put(after, due_at=due_at(after))
    return after, decline


def mark_paid(world: World, invoice: Json, intent: Json | None = None) -> Json:
    """Close an open invoice as paid; without an intent nothing was due or it was paid elsewhere."""
    now = world.now(invoice["test_clock"])
    after = copied(invoice) | {
        "status": "paid",
        "attempted": True,
        "auto_advance": False,
        "amount_paid": invoice["amount_due"],
        "amount_remaining": 0,
        "next_payment_attempt": None,
    }
    after["status_transitions"]["paid_at"] = now
    world.store.put(after)
    for payment in payments_of(world, invoice) if intent is not None else []:
        paid = copied(payment) | {"status": "paid", "amount_paid": invoice["amount_due"]}
        paid["status_transitions"]["paid_at"] = now
        world.store.put(paid)
        world.emit("invoice_payment.paid", paid)
    world.emit("invoice.paid", after)
    world.emit("invoice.payment_succeeded", after)
    return after


def void(world: World, before: Json, status: str = "void") -> Json:
    """End an invoice that will not be paid: `void` or `uncollectible`."""
    after = copied(before) | {"status": status, "auto_advance": False, "next_payment_attempt": None}
    stamp = "voided_at" if status == "void" else "marked_uncollectible_at"
    after["status_transitions"][stamp] = world.now(before["test_clock"])
    if status == "void":
        after["amount_remaining"] = 0
        for payment in payments_of(world, before):
            world.store.put(copied(payment) | {"status": "canceled"})
    return save(world, before, after, "invoice.voided" if status == "void" else "invoice.marked_uncollectible")

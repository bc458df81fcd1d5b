"""The making of invoices: totals, numbers, states, and the payment that belongs to each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from devkit.stripe.errors import Json
from devkit.stripe.invoice_lines import claim
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
    claim(world, lines)
    world.store.put(body, due_at=due_at(body))
    world.emit("invoice.created", body)
    return body


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
    after: Json = copied(invoice) | {"attempt_count": invoice["attempt_count"] + 1, "attempted": True}
    if decline is None:
        return mark_paid(world, after, intent), None
    world.store.put(after, due_at=due_at(after))
    return after, decline


def mark_paid(world: World, invoice: Json, intent: Json | None = None) -> Json:
    """Close an open invoice as paid; without an intent nothing was due or it was paid elsewhere."""
    now = world.now(invoice["test_clock"])
    after: Json = copied(invoice) | {
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
        paid: Json = copied(payment) | {"status": "paid", "amount_paid": invoice["amount_due"]}
        paid["status_transitions"]["paid_at"] = now
        world.store.put(paid)
        world.emit("invoice_payment.paid", paid)
    world.emit("invoice.paid", after)
    world.emit("invoice.payment_succeeded", after)
    return after


def void(world: World, before: Json, status: str = "void") -> Json:
    """End an invoice that will not be paid: `void` or `uncollectible`."""
    after: Json = copied(before) | {"status": status, "auto_advance": False, "next_payment_attempt": None}
    stamp = "voided_at" if status == "void" else "marked_uncollectible_at"
    after["status_transitions"][stamp] = world.now(before["test_clock"])
    if status == "void":
        after["amount_remaining"] = 0
        for payment in payments_of(world, before):
            world.store.put(copied(payment) | {"status": "canceled"})
    return save(world, before, after, "invoice.voided" if status == "void" else "invoice.marked_uncollectible")

"""The life of a subscription: first payment, renewals, failures, trials, pauses and the end."""

from dataclasses import dataclass
from decimal import Decimal
from typing import cast

from devkit.stripe import invoice_lines, invoicing
from devkit.stripe.errors import Json
from devkit.stripe.invoicing import Draft
from devkit.stripe.payments import NO_METHOD
from devkit.stripe.periods import next_boundary
from devkit.stripe.usage import used
from devkit.stripe.world import DAY_S, World, copied, inner

FIRST_PAYMENT_WITHIN_S = 23 * 3_600
TRIAL_WARNING_S = 3 * DAY_S
RUNNING = ("active", "past_due", "unpaid")
ENDED = ("canceled", "incomplete_expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A billing period, Unix seconds, half-open."""

    start: int
    end: int


def items_of(subscription: Json) -> list[Json]:
    return cast("list[Json]", subscription["items"]["data"])


def period_of(subscription: Json) -> Span:
    first = items_of(subscription)[0]
    return Span(start=first["current_period_start"], end=first["current_period_end"])


def set_period(subscription: Json, span: Span) -> None:
    for item in items_of(subscription):
        item |= {"current_period_start": span.start, "current_period_end": span.end}
    if subscription["cancel_at_period_end"]:
        subscription["cancel_at"] = span.end


def due_at(subscription: Json) -> int | None:
    """When the subscription's clock has work for it next."""
    status = subscription["status"]
    if status in ENDED:
        return None
    moments: list[int | None] = [subscription["cancel_at"], inner(subscription, "pause_collection").get("resumes_at")]
    if status == "incomplete":
        moments.append(subscription["created"] + FIRST_PAYMENT_WITHIN_S)
    elif status == "trialing":
        warning = subscription["trial_end"] - TRIAL_WARNING_S
        moments += [subscription["trial_end"], None if subscription["_trial_warned"] else warning]
    elif status in RUNNING:
        moments.append(period_of(subscription).end)
    return min((moment for moment in moments if moment is not None), default=None)


def save(world: World, before: Json, after: Json, event: str | None = "customer.subscription.updated") -> Json:
    return world.change(before, after, event, due_at=due_at(after))


def clock_of(subscription: Json) -> str | None:
    return cast("str | None", subscription["test_clock"])


def method_for(world: World, subscription: Json) -> str | None:
    """The card a subscription is paid with: its own, else the customer's default."""
    own = cast("str | None", subscription["default_payment_method"])
    customer = world.store.find(subscription["customer"])
    if own is not None or customer is None or customer.get("deleted"):
        return own
    return cast("str | None", customer["invoice_settings"]["default_payment_method"])


def subscription_of(world: World, invoice: Json) -> Json | None:
    details = inner(inner(invoice, "parent"), "subscription_details")
    name = details.get("subscription")
    return world.store.find(name, "subscription") if name else None


# Invoices of a subscription


def bill(
    world: World, subscription: Json, reason: str, *, ahead: Span | None, behind: Span | None = None
) -> tuple[Json, Json]:
    """Draft the invoice for the period ahead (licensed items) and the one behind (metered usage).

    Gives the subscription, which now names the invoice as its latest, and the invoice.
    """
    customer = world.need("customer", subscription["customer"])
    lines = invoice_lines.take_pending(world, customer["id"], subscription["id"])
    for item in items_of(subscription):
        meter = item["price"]["recurring"]["meter"]
        if meter is None and ahead is not None:
            span, quantity = ahead, Decimal(item["quantity"])
        elif meter is not None and behind is not None:
            found = world.store.find(meter) or {}
            span, quantity = behind, used(world, found, customer["id"], behind.start, behind.end)
        else:
            continue
        lines.append(
            invoice_lines.subscription_line(
                world, item, subscription=subscription["id"], period=(span.start, span.end), quantity=quantity
            )
        )
    covered = behind or ahead or period_of(subscription)
    pause = inner(subscription, "pause_collection")
    is_held = subscription["status"] == "unpaid" or pause.get("behavior") == "keep_as_draft"
    invoice = invoicing.new_invoice(
        world,
        Draft(
            customer=customer,
            reason=reason,
            period=(covered.start, covered.end),
            lines=lines,
            currency=subscription["currency"],
            subscription=subscription,
            auto_advance=not is_held,
        ),
    )
    return copied(subscription) | {"latest_invoice": invoice["id"]}, invoice


def collect(world: World, invoice: Json, method_id: str | None = None) -> tuple[Json, str | None]:
    """Try to collect an open invoice and let its subscription feel the result."""
    subscription = subscription_of(world, invoice)
    if method_id is None:
        method_id = _method_of_invoice(world, invoice, subscription)
    after, decline = invoicing.try_payment(world, invoice, method_id)
    if decline is None:
        settled(world, after)
        return after, None
    return _failed(world, after, subscription, decline), decline


def _method_of_invoice(world: World, invoice: Json, subscription: Json | None) -> str | None:
    if invoice["default_payment_method"] is not None:
        return cast("str", invoice["default_payment_method"])
    if subscription is not None:
        return method_for(world, subscription)
    customer = world.store.find(invoice["customer"]) or {}
    return cast("str | None", inner(customer, "invoice_settings").get("default_payment_method"))


def settled(world: World, invoice: Json) -> None:
    """An invoice was paid: a subscription that waited for the money runs (again)."""
    _set_delinquent(world, invoice["customer"], is_delinquent=False)
    before = subscription_of(world, invoice)
    if before is None:
        return
    starts = before["status"] == "incomplete" and invoice["billing_reason"] == "subscription_create"
    recovers = before["status"] in {"past_due", "unpaid"} and before["latest_invoice"] == invoice["id"]
    resumes = before["status"] == "paused" and before.get("_resumes_with") == invoice["id"]
    if starts or recovers or resumes:
        save(world, before, copied(before) | {"status": "active", "status_details": None})
        if resumes:
            world.emit("customer.subscription.resumed", world.need("subscription", before["id"]))


def _failed(world: World, before: Json, subscription: Json | None, decline: str) -> Json:
    after = copied(before)
    after["next_payment_attempt"] = None
    is_first = before["billing_reason"] == "subscription_create"
    retries = world.settings.retry_days
    is_over = before["attempt_count"] > len(retries)
    if before["auto_advance"] and not is_first and not is_over:
        after["next_payment_attempt"] = world.now(before["test_clock"]) + retries[before["attempt_count"] - 1] * DAY_S
    world.store.put(after, due_at=invoicing.due_at(after))
    world.emit("invoice.payment_action_required" if decline == "authentication_required" else "invoice.updated", after)
    world.emit("invoice.payment_failed", after)
    _set_delinquent(world, before["customer"], is_delinquent=True)
    if subscription is not None and not is_first and subscription["status"] in {"active", "trialing", "past_due"}:
        _fall_behind(world, subscription, is_over=is_over)
    return after


def _fall_behind(world: World, before: Json, *, is_over: bool) -> None:
    final = world.settings.after_final_failure
    if is_over and final == "canceled":
        end(world, before, reason="payment_failed")
    else:
        save(world, before, copied(before) | {"status": final if is_over else "past_due"})


def _set_delinquent(world: World, customer: str, *, is_delinquent: bool) -> None:
    before = world.store.find(customer)
    if before is not None and not before.get("deleted") and before["delinquent"] != is_delinquent:
        world.change(before, copied(before) | {"delinquent": is_delinquent}, "customer.updated")


# What the clock brings


def on_due(world: World, subscription: Json) -> None:
    """Do the one thing that is due first; the clock asks again while more is due."""
    now = world.now(clock_of(subscription))
    if subscription["cancel_at"] is not None and subscription["cancel_at"] <= now:
        end(world, subscription, reason="cancellation_requested", bills_usage=True)
    elif (inner(subscription, "pause_collection").get("resumes_at") or now + 1) <= now:
        save(world, subscription, copied(subscription) | {"pause_collection": None})
    elif subscription["status"] == "incomplete":
        _expire(world, subscription)
    elif subscription["status"] == "trialing" and subscription["trial_end"] <= now:
        end_trial(world, subscription)
    elif subscription["status"] == "trialing":
        save(world, subscription, copied(subscription) | {"_trial_warned": True})
        world.emit("customer.subscription.trial_will_end", subscription)
    else:
        _renew(world, subscription)


def _renew(world: World, before: Json) -> None:
    behind = period_of(before)
    boundary = next_boundary(before["billing_cycle_anchor"], items_of(before)[0]["price"], behind.end)
    ahead = Span(start=behind.end, end=boundary)
    after, _ = bill(world, before, "subscription_cycle", ahead=ahead, behind=behind)
    set_period(after, ahead)
    save(world, before, after)


def _expire(world: World, before: Json) -> None:
    invoice = world.store.find(before["latest_invoice"])
    if invoice is not None and invoice["status"] == "open":
        invoicing.void(world, invoice)
    now = world.now(clock_of(before))
    save(world, before, copied(before) | {"status": "incomplete_expired", "ended_at": now})


def end_trial(world: World, before: Json, *, at_once: bool = False) -> Json:
    """The trial is over: bill the first period, or do what the trial's settings say when there is no card."""
    now = world.now(clock_of(before))
    missing = before["trial_settings"]["end_behavior"]["missing_payment_method"]
    if method_for(world, before) is None and before["collection_method"] != "send_invoice":
        if missing == "cancel":
            return end(world, before, reason=None)
        if missing == "pause":
            return pause(world, before, "trial_end_without_payment_method")
    started: Json = copied(before) | {"trial_end": now, "billing_cycle_anchor": now, "status": "active"}
    ahead = Span(start=now, end=next_boundary(now, items_of(before)[0]["price"], now))
    set_period(started, ahead)
    reason = "subscription_update" if at_once else "subscription_cycle"
    after, invoice = bill(world, started, reason, ahead=ahead)
    save(world, before, after)
    if at_once:
        settle_now(world, invoice)
    return world.need("subscription", before["id"])


def settle_now(world: World, draft: Json) -> tuple[Json, str | None]:
    """Finalize a draft and, unless it is sent to the customer, collect it."""
    pause_behavior = _pause_behavior(world, draft)
    invoice = invoicing.finalize(world, draft)
    if invoice["status"] != "open":
        settled(world, invoice)
        return invoice, None
    if pause_behavior in {"void", "mark_uncollectible"}:
        return invoicing.void(world, invoice, "void" if pause_behavior == "void" else "uncollectible"), None
    if invoice["collection_method"] == "send_invoice":
        world.emit("invoice.sent", invoice)
        return invoice, None
    return collect(world, invoice)


def _pause_behavior(world: World, invoice: Json) -> str | None:
    subscription = subscription_of(world, invoice) or {}
    return cast("str | None", inner(subscription, "pause_collection").get("behavior"))


def on_invoice_due(world: World, invoice: Json) -> None:
    """A draft's hour is over, or a failed payment is to be tried again."""
    if invoice["status"] == "draft":
        settle_now(world, invoice)
    else:
        collect(world, invoice)


def pause(world: World, before: Json, why: str) -> Json:
    now = world.now(clock_of(before))
    details = {"paused": {"subscription": {"type": why}, "transitioned_at": now, "type": "subscription"}}
    after = save(world, before, copied(before) | {"status": "paused", "status_details": details})
    world.emit("customer.subscription.paused", after)
    return after


def end(world: World, before: Json, *, reason: str | None, bills_usage: bool = False) -> Json:
    """Cancel now. Usage of the running period is billed when asked; drafts stop advancing, as with Stripe."""
    now = world.now(clock_of(before))
    after = copied(before)
    if bills_usage and any(item["price"]["recurring"]["meter"] for item in items_of(before)):
        span = Span(start=period_of(before).start, end=now)
        after, _ = bill(world, before, "subscription_cycle", ahead=None, behind=span)
    after |= {"status": "canceled", "ended_at": now, "canceled_at": before["canceled_at"] or now}
    after["pause_collection"] = None
    if reason is not None:
        after["cancellation_details"]["reason"] = after["cancellation_details"]["reason"] or reason
    world.store.put(after)
    world.emit("customer.subscription.deleted", after)
    if not bills_usage:
        _stop_collecting(world, after)
    return after


def _stop_collecting(world: World, subscription: Json) -> None:
    for invoice in list(world.store.newest_first("invoice", owner=subscription["customer"])):
        parent = subscription_of(world, invoice)
        if parent is not None and parent["id"] == subscription["id"] and invoice["status"] in {"draft", "open"}:
            quiet = {"auto_advance": False, "next_payment_attempt": None, "automatically_finalizes_at": None}
            invoicing.save(world, invoice, copied(invoice) | quiet)


__all__ = [
    "NO_METHOD",
    "Span",
    "bill",
    "collect",
    "due_at",
    "end",
    "end_trial",
    "items_of",
    "pause",
    "period_of",
    "save",
]

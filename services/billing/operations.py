"""Billing's writes: each function is one transaction handed in as `conn`, without network, safe to repeat."""

from collections.abc import Sequence
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.billing import InvoicePaid, PaymentFailed, SubscriptionChanged, UserErasedByBilling
from libs.common.ids import new_id
from services.billing import drift_queries, erasure_queries, queries, sale_queries, work_queries
from services.billing.domain import (
    AccountDeleted,
    AlreadySubscribed,
    CheckoutIntent,
    Purchase,
    Rules,
    StripeCheckout,
    StripeCustomer,
    StripeInvoice,
    StripeSubscription,
    effective_plan,
    tier_of,
)
from services.billing.webhook import TOLERANCE_S, WebhookEvent, WebhookOutOfTime
from services.billing.work_queries import Lease

PORTAL = "/v1/billing/portal"


async def record_events(
    conn: Connection, deliveries: Sequence[tuple[WebhookEvent, int]]
) -> list[bool | WebhookOutOfTime]:
    """Store genuine events, each with when it was signed, and have their objects fetched.

    For each: True if it was new, False if it was known, or why it was not stored. Whether a signature is in time is
    judged by the database's clock, which does not drift with the replica that happened to answer.
    """
    receipts = await work_queries.insert_events(conn, deliveries, tolerance_s=TOLERANCE_S)
    return [
        receipt.is_new
        if receipt.is_in_time
        else WebhookOutOfTime(f"The signature was made more than {TOLERANCE_S} s away from now.")
        for receipt in receipts
    ]


# What was fetched -----------------------------------------------------------------------------------------------------


async def store_subscription(
    conn: Connection, lease: Lease, subscription: StripeSubscription | None, *, rules: Rules
) -> None:
    """Store a fetched subscription and let the user's plan follow. Nothing happens under a lost lease."""
    if subscription is None:
        await work_queries.finish_refresh(conn, lease)
        return
    owner = await _settle_owner(conn, subscription.stripe_customer_id, subscription.claimed_user_id)
    if not await _finish(conn, lease, subscription.stripe_customer_id):
        return
    price, tier = tier_of(subscription.prices, rules.plans)
    await queries.upsert_subscription(
        conn,
        subscription,
        user_id=owner,
        tier=tier,
        price=(price.id, price.lookup_key) if price else (None, None),
        read_at=lease.read_at,
    )
    owner = owner or await queries.find_owner_of_subscription(conn, subscription.id)
    if owner is not None:
        await evaluate_account(conn, owner, rules=rules)


async def store_invoice(conn: Connection, lease: Lease, invoice: StripeInvoice | None) -> None:
    """Store a fetched invoice; tell once that it was paid, and once for each attempt that failed."""
    if invoice is None or invoice.stripe_customer_id is None:  # without a customer it is no invoice of a user's
        await work_queries.finish_refresh(conn, lease)
        return
    owner = await _settle_owner(conn, invoice.stripe_customer_id, invoice.claimed_user_id)
    if not await _finish(conn, lease, invoice.stripe_customer_id):
        return
    await sale_queries.upsert_invoice(conn, invoice, user_id=owner, read_at=lease.read_at)
    await _tell_of_invoice(conn, invoice.id)


async def _tell_of_invoice(conn: Connection, invoice_id: str) -> None:
    """Publish what the stored invoice says and nobody was told yet. While nobody owns it, there is nobody to tell."""
    row = await sale_queries.lock_invoice(conn, invoice_id)
    if row is None or row["user_id"] is None:
        return
    is_paid, attempt = row["status"] == "paid", row["attempt_count"]
    # An attempt may also be under way (bank debits): only Stripe's word of a failure makes it one.
    has_failed = (
        row["status"] == "open"
        and attempt > row["attempt_told"]
        and await sale_queries.has_failed_attempt(
            conn, invoice_id=invoice_id, stripe_subscription_id=row["stripe_subscription_id"]
        )
    )
    if is_paid and not row["is_paid_told"]:
        await outbox.add(
            conn,
            InvoicePaid(
                user_id=row["user_id"],
                stripe_invoice_id=invoice_id,
                amount_minor=row["amount_paid_minor"],
                currency=row["currency"],
            ),
        )
    if has_failed:
        await outbox.add(
            conn,
            PaymentFailed(
                user_id=row["user_id"],
                stripe_invoice_id=invoice_id,
                amount_minor=row["amount_due_minor"],
                currency=row["currency"],
                attempt=attempt,
                next_attempt_at=row["next_attempt_at"],
                invoice_number=row["number"],
                invoice_url=row["hosted_url"],
            ),
        )
    await sale_queries.mark_invoice_told(
        conn,
        invoice_id,
        is_paid_told=row["is_paid_told"] or is_paid,
        attempt_told=attempt if has_failed else row["attempt_told"],
    )


async def store_customer(
    conn: Connection,
    lease: Lease,
    customer: StripeCustomer | None,
    *,
    subscription_ids: Sequence[str],
    rules: Rules,
) -> None:
    """Learn whose a fetched customer is, and have its subscriptions fetched; forget one that is gone."""
    owner = await _settle_owner(conn, lease.object_id, customer.claimed_user_id if customer else None)
    if not await _finish(conn, lease, lease.object_id):
        return
    if customer is None:
        await queries.reset_customer(conn, stripe_customer_id=lease.object_id, key=_customer_key())
        return
    for subscription_id in subscription_ids:
        await work_queries.request_refresh(conn, subscription_id)
    if owner is not None:
        await evaluate_account(conn, owner, rules=rules)


async def store_checkout(conn: Connection, lease: Lease, session: StripeCheckout | None, *, rules: Rules) -> None:
    """Close the intent of a finished session, learn whose its customer is, and have its subscription fetched."""
    if session is None or session.stripe_customer_id is None:  # expired before anybody gave a name
        await work_queries.finish_refresh(conn, lease)
        return
    owner = await _settle_owner(conn, session.stripe_customer_id, session.claimed_user_id)
    if not await _finish(conn, lease, session.stripe_customer_id):
        return
    await close_session(conn, session)
    if session.stripe_subscription_id is not None:
        await work_queries.request_refresh(conn, session.stripe_subscription_id)
    if owner is not None:
        await evaluate_account(conn, owner, rules=rules)


async def _settle_owner(conn: Connection, stripe_customer_id: str, claimed: UUID | None) -> UUID | None:
    """Whose the customer is: as known, or as its own metadata claims, which is then remembered."""
    if claimed is not None:
        await queries.lock_user(conn, claimed)
    await queries.lock_customer(conn, stripe_customer_id)
    owner = await queries.find_user_of_customer(conn, stripe_customer_id)
    if owner is not None or claimed is None:
        return owner
    if await erasure_queries.is_erased_user(conn, claimed):
        return None
    # A user who has another customer already keeps that one; what this one pays for is the user's all the same.
    await queries.upsert_customer_id(conn, user_id=claimed, stripe_customer_id=stripe_customer_id)
    await _claim_rows(conn, user_id=claimed, stripe_customer_id=stripe_customer_id)
    return claimed


async def _claim_rows(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> None:
    for invoice_id in await queries.claim_rows_of_customer(
        conn, user_id=user_id, stripe_customer_id=stripe_customer_id
    ):
        await _tell_of_invoice(conn, invoice_id)


async def _finish(conn: Connection, lease: Lease, stripe_customer_id: str) -> bool:
    """Close the lease; False if nothing may be stored: the lease was lost, or the customer is of somebody erased.

    After the customer's lock, never before it: a transaction that holds the lock may touch other objects' rows.
    """
    if not await work_queries.finish_refresh(conn, lease):
        return False
    if await erasure_queries.is_erased_customer(conn, stripe_customer_id):
        await erasure_queries.scrub_events(conn, lease.object_id)
        return False
    return True


# The plan -------------------------------------------------------------------------------------------------------------


async def evaluate_account(conn: Connection, user_id: UUID, *, rules: Rules) -> None:
    """Decide the user's plan from the stored subscriptions; publish it, one version on, if it says something new."""
    version, before = await queries.lock_account(conn, user_id)
    subscriptions = await queries.find_subscriptions(conn, user_id)
    plan = effective_plan(subscriptions, now=await queries.get_now(conn), grace=rules.grace, plans=rules.plans)
    is_new = not plan.says_the_same_as(before)
    await queries.update_account(conn, user_id, plan, version=version + is_new)
    if is_new:
        await outbox.add(
            conn,
            SubscriptionChanged(
                user_id=user_id,
                version=version + 1,
                tier=plan.tier,
                status=plan.status,
                stripe_customer_id=plan.stripe_customer_id or before.stripe_customer_id or "",
                current_period_start=plan.current_period_start,
                current_period_end=plan.current_period_end,
                cancel_at=plan.cancel_at,
            ),
        )


async def review_account(conn: Connection, user_id: UUID, *, rules: Rules) -> None:
    """A grace or a subscription has ended by the clock: decide again, unless the user is gone meanwhile."""
    await queries.lock_user(conn, user_id)
    if not await erasure_queries.is_erased_user(conn, user_id):
        await evaluate_account(conn, user_id, rules=rules)


# Buying ---------------------------------------------------------------------------------------------------------------


async def begin_checkout(conn: Connection, purchase: Purchase) -> CheckoutIntent:
    """Write down what will be asked of Stripe, or find what was written by a try before.

    Raises AccountDeleted, and AlreadySubscribed with a pointer to the portal.
    """
    await queries.lock_user(conn, purchase.user_id)
    await require_account(conn, purchase.user_id)
    if any(not one.status.is_over for one in await queries.find_subscriptions(conn, purchase.user_id)):
        raise already_subscribed()
    await queries.insert_customer_intent(conn, user_id=purchase.user_id, email=purchase.email, key=_customer_key())
    customer = await queries.get_customer(conn, purchase.user_id)
    live = await sale_queries.find_live_checkouts(conn, purchase.user_id)
    wanted = (purchase.tier, purchase.success_url, purchase.cancel_url)
    same = next((row for row in live if (row["tier"], row["success_url"], row["cancel_url"]) == wanted), None)
    checkout_id = same["id"] if same else new_id()
    key = same["idempotency_key"] if same else f"checkout-{checkout_id}"
    if same is None:
        await sale_queries.insert_checkout(conn, checkout_id=checkout_id, key=key, purchase=purchase)
    return CheckoutIntent(
        id=checkout_id,
        idempotency_key=key,
        session_id=same["stripe_session_id"] if same else None,
        stripe_customer_id=customer["stripe_customer_id"],
        customer_key=customer["idempotency_key"],
        customer_email=customer["email"],
        is_customer_intent_old=customer["is_old"],
        superseded=[
            row["stripe_session_id"]
            for row in live
            if row["id"] != checkout_id and row["stripe_session_id"] is not None
        ],
    )


async def require_account(conn: Connection, user_id: UUID) -> None:
    """Raises AccountDeleted: an access token may outlive its user by an hour."""
    if await erasure_queries.is_erased_user(conn, user_id):
        raise AccountDeleted("This account has been deleted.")


def already_subscribed() -> AlreadySubscribed:
    return AlreadySubscribed(
        "You have a subscription already; change or cancel it in the customer portal.", portal=PORTAL
    )


async def save_customer(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> None:
    """Remember the customer Stripe made for the user. Raises AccountDeleted if the user was deleted meanwhile."""
    await queries.lock_user(conn, user_id)
    await require_account(conn, user_id)
    await queries.upsert_customer_id(conn, user_id=user_id, stripe_customer_id=stripe_customer_id)


async def save_checkout(conn: Connection, intent: CheckoutIntent, *, session_id: str | None, status: str) -> None:
    await sale_queries.mark_checkout(conn, intent.id, session_id=session_id, status=status)


async def close_session(conn: Connection, session: StripeCheckout) -> None:
    await sale_queries.mark_session(
        conn, session_id=session.id, status=session.status, subscription_id=session.stripe_subscription_id
    )


async def forget_customer(conn: Connection, stripe_customer_id: str) -> None:
    """The customer is gone at Stripe: the next checkout makes another."""
    await queries.reset_customer(conn, stripe_customer_id=stripe_customer_id, key=_customer_key())


def _customer_key() -> str:
    return f"customer-{new_id()}"


async def adopt_customer(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> None:
    """An operator, or an import, wrote a customer into the user's profile: take it over, and look at it at Stripe.

    A user who has a customer keeps it, and a customer of somebody else stays theirs.
    """
    await queries.lock_user(conn, user_id)
    if await erasure_queries.is_erased_user(conn, user_id):
        return
    known = await queries.find_customer(conn, user_id)
    if known is not None and known["stripe_customer_id"] is not None:
        return
    await queries.lock_customer(conn, stripe_customer_id)
    if await queries.upsert_customer_id(conn, user_id=user_id, stripe_customer_id=stripe_customer_id):
        await _claim_rows(conn, user_id=user_id, stripe_customer_id=stripe_customer_id)
        await work_queries.request_refresh(conn, stripe_customer_id)


async def relink_customer(conn: Connection, *, user_id: UUID, stripe_customer_id: str, rules: Rules) -> None:
    """An operator says whose a customer is, whatever was known: its rows become the user's, and it is looked at again.

    Raises AccountDeleted for an erased user. The customer that the user had until now keeps its rows.
    """
    await queries.lock_user(conn, user_id)
    await require_account(conn, user_id)
    await queries.lock_customer(conn, stripe_customer_id)
    before = await queries.find_user_of_customer(conn, stripe_customer_id)
    await queries.move_customer(conn, user_id=user_id, stripe_customer_id=stripe_customer_id)
    for one in sorted({user_id, before or user_id}):
        await evaluate_account(conn, one, rules=rules)
    await work_queries.request_refresh(conn, stripe_customer_id)


async def request_reconciliation(conn: Connection, *, run_id: UUID, is_fixing: bool) -> None:
    await drift_queries.insert_run(conn, run_id=run_id, is_fixing=is_fixing)


async def forget_old_records(conn: Connection, *, keep_days: int, limit: int) -> int:
    """Delete a bite of handled events and finished comparisons older than that; return how many events."""
    await drift_queries.delete_old_runs(conn, keep_days=keep_days)
    return await work_queries.delete_old_events(conn, keep_days=keep_days, limit=limit)


async def note_profile(conn: Connection, *, user_id: UUID, version: int, tier: str, status: str) -> None:
    """Remember what the user's profile shows, for the comparison with what Stripe pays for."""
    await queries.lock_user(conn, user_id)
    if not await erasure_queries.is_erased_user(conn, user_id):
        await drift_queries.upsert_profile(conn, user_id=user_id, version=version, tier=tier, status=status)


# Deletion -------------------------------------------------------------------------------------------------------------


async def request_erasure(
    conn: Connection, *, user_id: UUID, profile_customer_id: str | None, has_payments: bool
) -> None:
    """Write down that the user must be erased. With nothing to do at Stripe, or no key for it, our rows go at once."""
    await queries.lock_user(conn, user_id)
    intent = await queries.find_customer(conn, user_id)
    customer_ids = set(await erasure_queries.find_customers_of_user(conn, user_id))
    if profile_customer_id and await queries.find_user_of_customer(conn, profile_customer_id) in {None, user_id}:
        customer_ids.add(profile_customer_id)  # a profile edited by hand may also name a customer of somebody else
    await erasure_queries.insert_erasure(conn, user_id=user_id, stripe_customer_ids=sorted(customer_ids))
    has_work_at_stripe = bool(customer_ids) or intent is not None
    if not has_work_at_stripe:
        await erasure_queries.mark_stripe_done(conn, user_id)
    if not (has_work_at_stripe and has_payments):
        await erase_user(conn, user_id)


async def save_erasure_customers(conn: Connection, user_id: UUID, stripe_customer_ids: Sequence[str]) -> None:
    await erasure_queries.add_erasure_customers(conn, user_id, stripe_customer_ids)


async def finish_erasure(conn: Connection, user_id: UUID) -> None:
    """Stripe has forgotten the user; so do we."""
    await queries.lock_user(conn, user_id)
    await erasure_queries.mark_stripe_done(conn, user_id)
    await erase_user(conn, user_id)


async def erase_user(conn: Connection, user_id: UUID) -> None:
    """Delete and anonymise the user's rows, and say so once. The caller holds the user's lock."""
    customer_ids = await erasure_queries.get_erasure_customers(conn, user_id)
    for customer_id in customer_ids:
        await queries.lock_customer(conn, customer_id)
    if not await erasure_queries.mark_erased(conn, user_id):
        return
    await erasure_queries.delete_user_rows(conn, user_id, customer_ids)
    await outbox.add(conn, UserErasedByBilling(user_id=user_id))

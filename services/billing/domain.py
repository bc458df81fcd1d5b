"""What a user's subscriptions entitle to, decided without I/O: statuses, grace, endings, and the facts Stripe gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Generic, TypeVar, assert_never
from uuid import UUID

from libs.common.errors import Conflict, Invalid, Unavailable
from libs.common.plans import Plans

FREE: Final = "free"
NEVER_SUBSCRIBED: Final = "inactive"


class BillingDisabled(Unavailable):
    code = "billing.disabled"


class PaymentsUnavailable(Unavailable):
    """Stripe is away, slow, limiting us, or does not take our key: the same call may succeed later."""

    code = "billing.payments_unavailable"


class PaymentsRefused(Invalid):
    """Stripe understood the call and will not do it; repeating it changes nothing."""

    code = "billing.payments_refused"


class Unreadable(PaymentsRefused):
    """Stripe has the object, and this version does not understand it: a status or a shape that came later."""

    code = "billing.unreadable"


class CustomerGone(PaymentsRefused):
    """The customer we know was deleted at Stripe, or never was."""

    code = "billing.customer_gone"


class TierNotForSale(Invalid):
    code = "billing.tier_not_for_sale"


class AlreadySubscribed(Conflict):
    code = "billing.already_subscribed"


class NoCustomer(Conflict):
    code = "billing.no_customer"


class AccountDeleted(Conflict):
    code = "billing.account_deleted"


class SubscriptionStatus(StrEnum):
    """Stripe's statuses, https://docs.stripe.com/api/subscriptions/object. Declared best first: ties go up the list."""

    ACTIVE = "active"
    TRIALING = "trialing"
    PAST_DUE = "past_due"
    UNPAID = "unpaid"
    PAUSED = "paused"
    INCOMPLETE = "incomplete"
    CANCELED = "canceled"
    INCOMPLETE_EXPIRED = "incomplete_expired"

    @property
    def is_over(self) -> bool:
        """Whether nothing can come of it any more, so that a new subscription may be bought beside it."""
        return self in {self.INCOMPLETE, self.CANCELED, self.INCOMPLETE_EXPIRED}


_STATUS_ORDER: Final = list(SubscriptionStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """The price of a subscription's item. `tier_hint` is its metadata's `tier`, for prices whose key moved on."""

    id: str
    lookup_key: str | None = None
    tier_hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StripePrice:
    """What Stripe charges under a lookup key. `amount_minor` is None for tiered prices."""

    lookup_key: str
    amount_minor: int | None
    currency: str
    interval: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeSubscription:
    """A subscription as Stripe has it. `past_due_since` is when the oldest invoice still open became due."""

    id: str
    stripe_customer_id: str
    claimed_user_id: UUID | None
    status: SubscriptionStatus
    prices: Sequence[Price]
    current_period_start: datetime | None
    current_period_end: datetime | None
    cancel_at: datetime | None
    cancel_at_period_end: bool
    canceled_at: datetime | None
    ended_at: datetime | None
    trial_end: datetime | None
    past_due_since: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeCustomer:
    id: str
    claimed_user_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeInvoice:
    """Amounts in the currency's minor unit."""

    id: str
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    claimed_user_id: UUID | None
    number: str | None
    status: str
    currency: str
    amount_due_minor: int
    amount_paid_minor: int
    attempt_count: int
    next_attempt_at: datetime | None
    hosted_url: str | None
    period_start: datetime | None
    period_end: datetime | None
    paid_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeCheckout:
    """A checkout session: `status` is open, complete or expired; `url` only while open."""

    id: str
    status: str
    url: str | None
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    claimed_user_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Usage that Stripe is to charge for. `is_stale`: it may be counted, and Stripe may have forgotten its name."""

    hold_id: UUID
    metric: str
    stripe_customer_id: str
    meter: str
    identifier: str
    value: int
    used_at: datetime
    is_stale: bool
    token: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageErrors:
    """What Stripe says it did not count, afterwards: the code by identifier. It names samples; `count` is of all."""

    codes: Mapping[str, str]
    count: int


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A page of what Stripe has, `last_id` being where the next one goes on; None where this one is the end.

    One object that this version cannot read must not hide all the others: it is named in `unreadable`.
    """

    items: Sequence[T]
    unreadable: Sequence[str] = ()
    last_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A stored subscription: what the effective plan is decided from. `tier` is None where no plan has its price."""

    id: str
    status: SubscriptionStatus
    tier: str | None
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    cancel_at: datetime | None = None
    cancel_at_period_end: bool = False
    trial_end: datetime | None = None
    past_due_since: datetime | None = None
    created_at: datetime
    stripe_customer_id: str = ""

    @property
    def ends_at(self) -> datetime | None:
        """When it ends by itself. The portal's ways of cancelling set one or the other."""
        return self.cancel_at or (self.current_period_end if self.cancel_at_period_end else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePlan:
    """What the user has now. `review_at` is when it changes by itself, without any word from Stripe."""

    tier: str = FREE
    status: str = NEVER_SUBSCRIBED
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    cancel_at: datetime | None = None
    trial_end: datetime | None = None
    stripe_customer_id: str | None = None
    review_at: datetime | None = None

    def says_the_same_as(self, other: "EffectivePlan") -> bool:
        """Whether nothing changed that anybody else would act upon."""
        return _told(self) == _told(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextChange:
    """What happens to a plan by itself, and when: `renews`, `ends`, `trial_ends` (the first payment), `grace_ends`."""

    what: str
    at: datetime


def next_change(plan: EffectivePlan) -> NextChange | None:
    """None where nothing happens without somebody's doing."""
    match plan.status:
        case SubscriptionStatus.ACTIVE | SubscriptionStatus.TRIALING if plan.cancel_at is not None:
            what, at = "ends", plan.cancel_at
        case SubscriptionStatus.ACTIVE:
            what, at = "renews", plan.current_period_end
        case SubscriptionStatus.TRIALING:
            what, at = "trial_ends", plan.trial_end
        case SubscriptionStatus.PAST_DUE if plan.tier != FREE:
            what, at = "grace_ends", plan.review_at
        case _:
            what, at = "nothing", None
    return NextChange(what=what, at=at) if at is not None else None


def _told(plan: EffectivePlan) -> tuple[object, ...]:
    return (plan.tier, plan.status, plan.current_period_start, plan.current_period_end, plan.cancel_at, plan.trial_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One subscription at one instant: the tier it gives (None: none), the status shown, until when."""

    subscription: Subscription
    tier: str | None
    status: SubscriptionStatus
    until: datetime | None = None


def standing_of(subscription: Subscription, *, now: datetime, grace: timedelta) -> Standing:
    """The rule by status; services/billing/README.md has it as a table, and a test compares the two."""
    ends_at = subscription.ends_at
    match subscription.status:
        case SubscriptionStatus.ACTIVE | SubscriptionStatus.TRIALING:
            tier, until = subscription.tier, ends_at
        case SubscriptionStatus.PAST_DUE:
            since = subscription.past_due_since or subscription.current_period_start or subscription.created_at
            grace_ends_at = since + grace
            tier = subscription.tier if now < grace_ends_at else None
            until = min(grace_ends_at, ends_at) if ends_at else grace_ends_at
        case (
            SubscriptionStatus.CANCELED
            | SubscriptionStatus.UNPAID
            | SubscriptionStatus.INCOMPLETE
            | SubscriptionStatus.INCOMPLETE_EXPIRED
            | SubscriptionStatus.PAUSED
        ):
            return Standing(subscription=subscription, tier=None, status=subscription.status)
        case _:
            assert_never(subscription.status)
    if ends_at is not None and ends_at <= now:
        # Stripe's own word of the end may be late; the end is not.
        return Standing(subscription=subscription, tier=None, status=SubscriptionStatus.CANCELED)
    return Standing(
        subscription=subscription,
        tier=tier,
        status=subscription.status,
        until=until if until is not None and until > now else ends_at,
    )


def effective_plan(
    subscriptions: Sequence[Subscription], *, now: datetime, grace: timedelta, plans: Plans
) -> EffectivePlan:
    """The plan that follows from all of a user's subscriptions: the highest tier any of them gives.

    The order of the arguments does not matter; ties are broken by status, by the later period, then by id.
    """
    standings = [standing_of(subscription, now=now, grace=grace) for subscription in subscriptions]
    if not standings:
        return EffectivePlan()
    ranks = {name: rank for rank, name in enumerate(plans.tiers)}
    best = max(standings, key=lambda standing: _preference(standing, ranks))
    chosen = best.subscription
    return EffectivePlan(
        tier=best.tier if best.tier in ranks else FREE,
        status=best.status,
        current_period_start=chosen.current_period_start,
        current_period_end=chosen.current_period_end,
        cancel_at=chosen.ends_at,
        trial_end=chosen.trial_end,
        stripe_customer_id=chosen.stripe_customer_id,
        review_at=min((standing.until for standing in standings if standing.until is not None), default=None),
    )


def _preference(standing: Standing, ranks: dict[str, int]) -> tuple[int, int, datetime, str]:
    return (
        ranks.get(standing.tier, -1) if standing.tier is not None else -1,
        -_STATUS_ORDER.index(standing.status),
        standing.subscription.current_period_end or datetime.min.replace(tzinfo=UTC),
        standing.subscription.id,
    )


def tier_of(prices: Sequence[Price], plans: Plans) -> tuple[Price | None, str | None]:
    """The item that decides a subscription's tier, and that tier; the first item and None where no plan has a price."""
    ranks = {name: rank for rank, name in enumerate(plans.tiers)}
    best: tuple[Price | None, str | None] = (prices[0] if prices else None, None)
    for price in prices:
        tier = plans.tier_of_lookup_key(price.lookup_key) or (price.tier_hint if price.tier_hint in ranks else None)
        if tier is not None and (best[1] is None or ranks[tier] > ranks[best[1]]):
            best = (price, tier)
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What a user asked to buy; the URLs are whole and under the frontend's."""

    user_id: UUID
    email: str | None
    tier: str
    success_url: str
    cancel_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutIntent:
    """What was written down before Stripe is asked. `session_id` is known if an earlier try came that far."""

    id: UUID
    idempotency_key: str
    session_id: str | None
    stripe_customer_id: str | None
    customer_key: str
    customer_email: str | None
    is_customer_intent_old: bool
    """Whether Stripe may have forgotten the customer's key, so that it must be searched for before it is made."""
    superseded: Sequence[str]
    """Open sessions for something else: ended first, or the user could pay twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What plans are decided by; set once at start."""

    plans: Plans
    grace: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutLink:
    id: str
    url: str

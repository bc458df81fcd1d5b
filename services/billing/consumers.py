"""Events billing consumes: users' deletions, profiles that somebody changed, and usage that Stripe charges for."""

from collections.abc import Callable, Sequence

from libs.common.broker import Subscription
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged, UserDeleted
from libs.common.events.metering import UsageSettled
from libs.common.plans import Plans
from services.billing import operations, usage_operations


def subscriptions(*, has_payments: bool, plans: Plans, wake: Callable[[], None] | None) -> Sequence[Subscription]:
    """`wake` rouses the job that does at Stripe what a handler wrote down."""

    async def on_user_deleted(event: UserDeleted, conn: Connection) -> None:
        await operations.request_erasure(
            conn, user_id=event.user_id, profile_customer_id=event.stripe_customer_id, has_payments=has_payments
        )

    async def on_entitlements_changed(event: EntitlementsChanged, conn: Connection) -> None:
        await operations.note_profile(
            conn, user_id=event.user_id, version=event.version, tier=event.tier, status=event.status
        )
        if event.stripe_customer_id:
            await operations.adopt_customer(conn, user_id=event.user_id, stripe_customer_id=event.stripe_customer_id)

    async def on_usage_settled(event: UsageSettled, conn: Connection) -> None:
        await on_usages_settled([event], conn)

    async def on_usages_settled(events: Sequence[UsageSettled], conn: Connection) -> None:
        await usage_operations.record_usage(conn, events, plans=plans)

    return (
        Subscription(event=UserDeleted, handler=on_user_deleted, wake=wake),
        Subscription(event=EntitlementsChanged, handler=on_entitlements_changed, wake=wake),
        Subscription(event=UsageSettled, handler=on_usage_settled, many=on_usages_settled, lingers=True),
    )

"""Events billing consumes: a user's deletion, and a Stripe customer that somebody wrote into a profile."""

from collections.abc import Callable, Sequence

from libs.common.broker import Subscription
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged, UserDeleted
from services.billing import operations


def subscriptions(*, has_payments: bool, wake: Callable[[], None] | None) -> Sequence[Subscription]:
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

    return (
        Subscription(event=UserDeleted, handler=on_user_deleted, wake=wake),
        Subscription(event=EntitlementsChanged, handler=on_entitlements_changed, wake=wake),
    )

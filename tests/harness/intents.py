"""Many users who buy while Stripe fails in every way, each trying again until the checkout is open."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from services.billing.checkout import Desk
from services.billing.domain import PaymentsUnavailable, Purchase
from tests.harness.patience import eventually
from tests.harness.stripe_emulator import StripeEmulator

AT_ONCE = 8


async def plan_faults(stripe: StripeEmulator, *, rounds: int, hangs: int = 0) -> None:
    """Before the work and after it, as a status, a limit and a cut connection, spread over the calls to come."""
    for number in range(rounds):
        for path in ("/v1/customers", "/v1/checkout/sessions"):
            skip = number * 7
            for kind, status in (
                ("status", 500),
                ("applied_then_status", 500),
                ("status", 429),
                ("applied_then_status", 429),
                ("applied_then_cut", 500),
                ("cut", 500),
            ):
                await stripe.control("faults", kind=kind, method="POST", path=path, status=status, times=2, skip=skip)
    for number in range(hangs):
        # Longer than any user is kept waiting: given up here, done there.
        await stripe.control(
            "faults", kind="applied_then_hang", method="POST", path="/v1/*", skip=number * 40, delay_s=6
        )


async def buy_all(desk: Desk, users: Sequence[UUID]) -> None:
    waiting = iter(users)

    async def buyer() -> None:
        for user_id in waiting:
            purchase = Purchase(
                user_id=user_id,
                email=None,
                tier="pro",
                success_url="https://app.example.com/done",
                cancel_url="https://app.example.com/",
            )

            async def is_open(purchase: Purchase = purchase) -> bool:
                try:
                    await desk.open_checkout(purchase)
                except PaymentsUnavailable:
                    return False
                return True

            await eventually(is_open, within_s=120, every_s=0.2)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(buyer())


async def count_objects(stripe: StripeEmulator, path: str) -> int:
    """All objects of a list, page by page."""
    found, after = 0, {}
    while True:
        page = await stripe.api("GET", path, limit="100", **after)
        found += len(page["data"])
        if not page["has_more"]:
            return found
        after = {"starting_after": page["data"][-1]["id"]}

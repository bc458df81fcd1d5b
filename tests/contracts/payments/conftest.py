"""The two payment providers: the fake, and the real adapter against an emulated Stripe."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from services.billing.ports import Payments
from services.billing.stripe_payments import open_stripe
from tests.builders import METER
from tests.fakes.payments import FakePayments
from tests.harness.stripe_emulator import (
    SECRET_KEY,
    StripeEmulator,
    free_port,
    make_meter,
    new_webhook_secret,
    stripe_emulator,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`complete` pays a session and returns the subscription's and the invoice's ids.

    `usage_complaint` is the event in which usage was last said not to count. There is a meter METER that sums.
    """

    payments: Payments
    complete: Callable[[str], Awaitable[tuple[str, str]]]
    usage_complaint: Callable[[], Awaitable[str]]


@pytest.fixture(scope="session")
async def emulated_stripe(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[StripeEmulator, None]:
    state = tmp_path_factory.mktemp("payments") / "stripe.db"
    async with stripe_emulator(state, port=free_port(), webhook_secret=new_webhook_secret()) as emulator:
        await make_meter(emulator, METER)
        yield emulator


async def _complete_at(emulator: StripeEmulator, session_id: str) -> tuple[str, str]:
    done = await emulator.complete(session_id)
    return done["subscription"], done["invoice"]


@pytest.fixture(params=["fake", "stripe"])
async def provider(request: pytest.FixtureRequest, emulated_stripe: StripeEmulator) -> AsyncGenerator[Provider, None]:
    if request.param == "fake":
        fake = FakePayments()

        async def complete_fake(session_id: str) -> tuple[str, str]:
            return fake.complete(session_id)

        async def fake_complaint() -> str:
            return list(fake.usage_errors)[-1]

        yield Provider(payments=fake, complete=complete_fake, usage_complaint=fake_complaint)
        return
    async with open_stripe(SECRET_KEY, api_base=emulated_stripe.url) as payments:

        async def complete(session_id: str) -> tuple[str, str]:
            return await _complete_at(emulated_stripe, session_id)

        async def complaint() -> str:
            return (await emulated_stripe.thin_events())[-1]["id"]

        yield Provider(payments=payments, complete=complete, usage_complaint=complaint)

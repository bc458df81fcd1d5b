"""The two payment providers: the fake, and the real adapter against an emulated Stripe."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from services.billing.ports import Payments
from services.billing.stripe_payments import open_stripe
from tests.fakes.payments import FakePayments
from tests.harness.stripe_emulator import (
    SECRET_KEY,
    StripeEmulator,
    free_port,
    new_webhook_secret,
    stripe_emulator,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`complete` pays a session and returns the subscription's and the invoice's ids."""

    payments: Payments
    complete: Callable[[str], Awaitable[tuple[str, str]]]


@pytest.fixture(scope="session")
async def emulated_stripe(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[StripeEmulator, None]:
    state = tmp_path_factory.mktemp("payments") / "stripe.db"
    async with stripe_emulator(state, port=free_port(), webhook_secret=new_webhook_secret()) as emulator:
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

        yield Provider(payments=fake, complete=complete_fake)
        return
    async with open_stripe(SECRET_KEY, api_base=emulated_stripe.url) as payments:

        async def complete(session_id: str) -> tuple[str, str]:
            return await _complete_at(emulated_stripe, session_id)

        yield Provider(payments=payments, complete=complete)

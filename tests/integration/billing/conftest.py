"""Billing in process, on a database of its own, beside an emulated Stripe."""

from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import pytest

from libs.common.ids import new_id
from tests.harness.billing import Billing, open_billing
from tests.harness.services import Place


@pytest.fixture
async def billing(place: Place, tmp_path: Path) -> AsyncGenerator[Billing, None]:
    """Stripe delivers to billing by itself."""
    async with open_billing(place, tmp_path / "stripe.db") as opened:
        yield opened


@pytest.fixture
async def quiet_billing(place: Place, tmp_path: Path) -> AsyncGenerator[Billing, None]:
    """Nothing is delivered by itself: the test is the postman."""
    async with open_billing(place, tmp_path / "stripe.db", delivers=False) as opened:
        yield opened


@pytest.fixture
def user_id() -> UUID:
    return new_id()

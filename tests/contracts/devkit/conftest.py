"""One emulator for the tests that can share it."""

from collections.abc import Generator
from pathlib import Path

import pytest
import stripe
from emulation import Emulator, Receiver


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Generator[Emulator]:
    running = Emulator(tmp_path_factory.mktemp("stripe")).run()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def client(emulator: Emulator) -> stripe.StripeClient:
    return emulator.client()


@pytest.fixture
def own_emulator(tmp_path: Path) -> Generator[Emulator]:
    """An emulator that one test may kill, or whose global clock it may move; not started yet."""
    emulator = Emulator(tmp_path)
    yield emulator
    emulator.kill()


@pytest.fixture
def receiver() -> Generator[Receiver]:
    with Receiver() as listening:
        yield listening

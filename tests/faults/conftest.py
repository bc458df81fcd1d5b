"""A stack with several gateways and workers, and a slow model behind it, for tests that disturb runs."""

from collections.abc import AsyncGenerator, Generator

import pytest
from llmock.chaos import StreamChaos
from llmock.testing import LLMockServer

from libs.common import database as db
from libs.common.database import Database
from ops.stack.stack import Stack
from tests.conftest import STACK_SETTINGS


@pytest.fixture(scope="module")
def provider() -> Generator[LLMockServer, None, None]:
    """A model that takes a second or two for an answer, and counts who asks."""
    with LLMockServer() as server:
        server.state.stream_chaos = StreamChaos(chunk_delay_ms=150)
        yield server


@pytest.fixture(scope="module")
def wide_stack(tmp_path_factory: pytest.TempPathFactory, provider: LLMockServer) -> Generator[Stack, None, None]:
    stack = Stack(tmp_path_factory.mktemp("wide") / "home")
    settings = {
        **STACK_SETTINGS,
        "RATE_LIMIT_MAX_REQUESTS": "1000000",
        "OPENAI_API_KEY": "sk-of-nobody-0123456789",
        "OPENAI_BASE_URL": provider.base_url("openai"),
        "AGENTS_MODELS": "openai:gpt-4o-mini",
    }
    try:
        stack.up(settings=settings, scale="gateway=2 agents=3")
        yield stack
    finally:
        stack.wipe()


@pytest.fixture
async def operator(wide_stack: Stack) -> AsyncGenerator[Database, None]:
    url = wide_stack.environment()["OPERATOR_DATABASE_URL"]
    async with db.connect(url, application_name="fault-oracle") as database:
        yield database

"""A process that dies at its n-th step, a transaction or a call to the world outside, before its effect or after it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from libs.common.database import Connection, Database


class Killed(BaseException):
    """As SIGKILL: nothing of ours may catch it."""


class Mortality:
    """Counts the steps of one process. Once it has died nothing it still tries takes effect."""

    def __init__(self, *, dies_at: int | None = None, after: bool = False) -> None:
        self._dies_at = dies_at
        self._after = after
        self.steps = 0
        self.has_died = asyncio.Event()
        self.transactions = 0
        """Under way: what one of them has committed can be seen before the process dies of it."""

    def begin(self) -> int:
        if self.has_died.is_set():
            raise Killed
        self.steps += 1
        return self.steps

    def before_effect(self, step: int) -> None:
        if self.has_died.is_set() or (step == self._dies_at and not self._after):
            self._die()

    def after_effect(self, step: int) -> None:
        if step == self._dies_at:
            self._die()

    def _die(self) -> None:
        self.has_died.set()
        raise Killed

    def database(self, database: Database) -> Database:
        return cast("Database", _MortalDatabase(database, self))

    def port(self, adapter: Any) -> Any:
        """The same adapter, each of whose calls is a step."""
        return _MortalPort(adapter, self)


class _MortalDatabase:
    def __init__(self, database: Database, mortality: Mortality) -> None:
        self._database = database
        self._mortality = mortality

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection, None]:
        step = self._mortality.begin()
        self._mortality.transactions += 1
        try:
            async with self._database.transaction() as conn:
                yield conn
                self._mortality.before_effect(step)
            self._mortality.after_effect(step)
        finally:
            self._mortality.transactions -= 1

    @asynccontextmanager
    async def statement(self) -> AsyncGenerator[Connection, None]:
        step = self._mortality.begin()
        self._mortality.transactions += 1
        try:
            # It commits itself, so there is no moment between its work and its effect.
            self._mortality.before_effect(step)
            async with self._database.statement() as conn:
                yield conn
            self._mortality.after_effect(step)
        finally:
            self._mortality.transactions -= 1


class _MortalPort:
    def __init__(self, adapter: Any, mortality: Mortality) -> None:
        self._adapter = adapter
        self._mortality = mortality

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._adapter, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            step = self._mortality.begin()
            self._mortality.before_effect(step)
            result = await method(*args, **kwargs)
            self._mortality.after_effect(step)
            return result

        return call

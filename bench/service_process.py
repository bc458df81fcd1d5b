"""A service of ours in a process of its own on real servers, set up as its tests would set it up."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from pydantic import BaseModel, SecretStr

from bench.processes import answering, running
from libs.common.process import Mode
from libs.common.settings import CommonSettings
from tests.harness.stripe_emulator import free_port


def as_environment(settings: CommonSettings) -> dict[str, str]:
    """What would make these settings: tuples as lists with commas, tables as their owner reads them."""
    said: dict[str, str] = {}
    for name in type(settings).model_fields:
        value: Any = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is None or isinstance(value, BaseModel | dict):
            continue
        said[name.upper()] = _plainly(value)
    return said


def _plainly(value: Any) -> str:
    return ",".join(str(part) for part in cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else str(value)


@asynccontextmanager
async def service(name: str, settings: CommonSettings, *, mode: Mode = "api") -> AsyncGenerator[tuple[str, int], None]:
    """Its address and its process id."""
    port = free_port()
    environment = {**as_environment(settings), "PORT": str(port)}
    command = (sys.executable, "-m", f"services.{name}.main", mode)
    async with running(command, environment=environment, name=name) as pid:
        url = f"http://127.0.0.1:{port}"
        await answering(f"{url}/health", pid)
        yield url, pid

"""localstripe, somebody else's Stripe (GPL, so in an environment of its own, made on demand and thrown away)."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from tests.harness.patience import eventually
from tests.harness.stripe_emulator import SECRET_KEY, free_port

REQUIREMENT: Final = "localstripe==1.15.10"
STATE: Final = Path("/tmp/localstripe.pickle")  # noqa: S108 - its own choice, of every instance on a machine


class LocalStripe:
    """Listens on every interface: nothing to leave running."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    async def api(self, method: str, path: str, /, **fields: str) -> dict[str, Any]:
        query = fields if method == "GET" else None
        answer = await self._client.request(method, path, params=query, data=None if query is not None else fields)
        answer.raise_for_status()
        return answer.json() if answer.content else {}


@asynccontextmanager
async def local_stripe(folder: Path) -> AsyncGenerator[LocalStripe, None]:
    await _run(sys.executable, "-m", "venv", str(folder))
    await _run(str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", REQUIREMENT)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        str(folder / "bin/localstripe"), "--port", str(port), "--from-scratch", stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, auth=(SECRET_KEY, ""), timeout=10) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/v1/customers")).is_success
                except httpx.TransportError:
                    return False

            await eventually(answers, within_s=20)
            yield LocalStripe(url, client)
    finally:
        process.terminate()
        await process.wait()
        STATE.unlink(missing_ok=True)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait() != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")

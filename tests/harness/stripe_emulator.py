"""The Stripe emulator as a process beside a test, and the hands a test needs on it."""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from tests.harness.patience import eventually

SECRET_KEY: Final = "sk_test_emulated0123456789"
_V2_HEADERS: Final = {"Authorization": f"Bearer {SECRET_KEY}"}
ROOT: Final = Path(__file__).parents[2]


class StripeEmulator:
    """One running emulator. `control` speaks to `/_emulator`, `api` to the API itself as Stripe's dashboard would."""

    def __init__(self, url: str, webhook_secret: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.webhook_secret = webhook_secret
        self._client = client

    async def control(self, part: str, /, **fields: Any) -> dict[str, Any]:
        answer = await self._client.post(f"/_emulator/{part}", json=fields)
        answer.raise_for_status()
        return answer.json()

    async def look(self, part: str, /, **fields: str) -> dict[str, Any]:
        """Read what the emulator knows of itself: `deliveries`, `calls`, `clock`."""
        answer = await self._client.get(f"/_emulator/{part}", params=fields)
        answer.raise_for_status()
        return answer.json()

    async def api(self, method: str, path: str, /, **fields: str) -> dict[str, Any]:
        answer = await self._client.request(
            method,
            f"/v1/{path}",
            auth=(SECRET_KEY, ""),
            params=fields if method == "GET" else None,
            data=None if method == "GET" else fields,
        )
        answer.raise_for_status()
        return answer.json()

    async def complete(self, session_id: str, *, card: str = "pm_card_visa") -> dict[str, Any]:
        """Pay at the hosted page."""
        answer = await self._client.post(f"/checkout/{session_id}/complete", json={"card": card})
        answer.raise_for_status()
        return answer.json()

    async def events(self) -> list[dict[str, Any]]:
        """Everything that happened, oldest first."""
        page = await self.api("GET", "events", limit="100")
        return list(reversed(page["data"]))

    async def thin_events(self) -> list[dict[str, Any]]:
        """Notices of the v2 API, oldest first."""
        answer = await self._client.get("/v2/core/events", params={"limit": "100"}, headers=_V2_HEADERS)
        answer.raise_for_status()
        return list(reversed(answer.json()["data"]))

    async def calls(self, method: str, path: str) -> list[dict[str, Any]]:
        return (await self.look("calls", method=method, path=path))["calls"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def stripe_emulator(
    state: Path, *, port: int, webhook_secret: str, webhook_url: str | None = None, flags: Sequence[str] = ()
) -> AsyncGenerator[StripeEmulator, None]:
    """Start an emulator and end it on leaving. Without `webhook_url` it delivers nothing."""
    arguments = ["--port", str(port), "--state", str(state), "--webhook-secret", webhook_secret]
    arguments += flags
    if webhook_url is not None:
        arguments += ["--webhook-url", webhook_url]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "devkit.stripe", *arguments, "--seed-plans", "config/plans.toml", cwd=ROOT, env=os.environ
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:

            async def answers() -> bool:
                if process.returncode is not None:
                    raise RuntimeError(f"the emulator ended with {process.returncode}")
                try:
                    return (await client.get("/_emulator/health")).is_success
                except httpx.TransportError:
                    return False

            await eventually(answers, within_s=20)
            yield StripeEmulator(url, webhook_secret, client)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def make_meter(stripe: StripeEmulator, event_name: str) -> str:
    """A meter that sums; return its id."""
    made = await stripe.api(
        "POST",
        "billing/meters",
        **{"display_name": event_name, "event_name": event_name, "default_aggregation[formula]": "sum"},
    )
    return made["id"]


def new_webhook_secret() -> str:
    return f"whsec_{secrets.token_hex(16)}"

"""How long from a payment to the raised limit, on the running stack: `python -m bench.entitlements [payments]`.

Measured from Stripe's page having taken the payment, before its webhook leaves, to the first answer of `/v1/usage` that
shows the paid plan's limit: delivery, refetch, three services and two hops over the broker. One payment at a time.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Final

import httpx

from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.patience import eventually

FREE_RUNS: Final = 50
PRO_RUNS: Final = 1_000
PATIENCE_S: Final = 30


async def pay(environment: Mapping[str, str]) -> float:
    """Sign somebody up and let them pay; return how many milliseconds the limit took."""
    headers = {"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]}
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], headers=headers, timeout=30) as client:
        body = {"email": f"bench-{new_id().hex}@example.com", "password": new_id().hex}
        session = (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()
        client.headers["Authorization"] = f"Bearer {session['access_token']}"
        await eventually(lambda: has_limit(client, FREE_RUNS), within_s=PATIENCE_S)
        opened = (await client.post("/v1/billing/checkout", json={"tier": "pro"})).raise_for_status().json()
        (await client.post(f"{opened['url']}/complete")).raise_for_status()
        paid_at = time.perf_counter()
        await eventually(lambda: has_limit(client, PRO_RUNS), within_s=PATIENCE_S, every_s=0.01)
        return (time.perf_counter() - paid_at) * 1000


async def has_limit(client: httpx.AsyncClient, runs: int) -> bool:
    metrics = (await client.get("/v1/usage")).raise_for_status().json()["metrics"]
    return "runs" in metrics and metrics["runs"]["limit"] == runs


async def measure(payments: int) -> None:
    environment = Stack().environment()
    await pay(environment)  # the first one warms everything up
    waits_ms = sorted([await pay(environment) for _ in range(payments)])
    print(
        f"payment to raised limit, {payments} payments: p50 {statistics.median(waits_ms):.0f} ms, "
        f"p95 {waits_ms[int(payments * 0.95)]:.0f} ms, max {waits_ms[-1]:.0f} ms; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 40))

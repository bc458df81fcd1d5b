"""How long from accepting a run to its first token, as a client sees it: `python -m bench.first_token [runs]`.

Measured from the 202's arrival to the arrival of the first `run.delta`, one run at a time, with the offline model.
"""

import asyncio
import statistics
import sys
import time

import asyncpg
import httpx

from libs.common.ids import new_id
from ops.stack.stack import Stack


async def measure(runs: int) -> None:
    environment = Stack().environment()
    headers = {"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]}
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], headers=headers, timeout=30) as client:
        body = {"email": f"bench-{new_id().hex}@example.com", "password": new_id().hex}
        session = (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()
        client.headers["Authorization"] = f"Bearer {session['access_token']}"
        await _lift_limits(environment["OPERATOR_DATABASE_URL"], session["user"]["id"])
        await asyncio.sleep(4)  # the gateway's view of the plan is at most this old
        waits_ms: list[float] = []
        for number in range(runs + 5):
            accepted = (await client.post("/v1/runs", json={"task": "Plan a launch"})).raise_for_status().json()
            started = time.perf_counter()
            async with client.stream("GET", accepted["links"]["events"]) as stream:
                async for line in stream.aiter_lines():
                    if line == "event: run.delta":
                        waits_ms.append((time.perf_counter() - started) * 1000)
                        break
            if number < 5:  # noqa: PLR2004 - warm-up
                waits_ms.clear()
            await asyncio.sleep(0.3)  # one at a time: let the run end
    waits_ms.sort()
    print(
        f"accepted to first token, {len(waits_ms)} runs: p50 {statistics.median(waits_ms):.1f} ms, "
        f"p95 {waits_ms[int(len(waits_ms) * 0.95)]:.1f} ms, max {waits_ms[-1]:.1f} ms"
    )


async def _lift_limits(operator_url: str, user_id: str) -> None:
    connection = await asyncpg.connect(operator_url)
    await connection.execute(
        """
        UPDATE user_profiles SET subscription_status = 'active', subscription_tier = 'enterprise'
        WHERE user_id = $1::uuid
        """,
        user_id,
    )
    await connection.close()


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100))

"""Whether refused sign-ins can be told apart by their time: unknown address, wrong password, banned, interleaved.

    eval "$(make -s env)" && .venv/bin/python -m bench.sign_in

The stack must allow that many sign-ins: make up AUTH_RATE_LIMIT_MAX_REQUESTS=100000
"""

import asyncio
import os
import secrets
import statistics
import time
from collections.abc import Mapping

import httpx

SAMPLES = 200
ALLOWED_MS = 5.0


async def sign_in(client: httpx.AsyncClient, email: str) -> tuple[float, tuple[int, bytes]]:
    started = time.perf_counter()
    body = {"email": email, "password": "not the password"}
    response = await client.post("/auth/v1/token?grant_type=password", json=body)
    return (time.perf_counter() - started) * 1000, (response.status_code, response.content)


async def make_people(client: httpx.AsyncClient, service_key: str) -> Mapping[str, str]:
    tag = secrets.token_hex(4)
    people = {kind: f"{kind}-{tag}@example.com" for kind in ("unknown", "wrong", "banned")}
    headers = {"apikey": service_key, "Authorization": f"Bearer {service_key}"}
    for kind in ("wrong", "banned"):
        body = {"email": people[kind], "password": "correct horse battery", "email_confirm": True}
        if kind == "banned":
            body["ban_duration"] = "24h"
        (await client.post("/auth/v1/admin/users", json=body, headers=headers)).raise_for_status()
    return people


async def main() -> None:
    key = os.environ["NEXT_PUBLIC_SUPABASE_ANON_KEY"]
    async with httpx.AsyncClient(base_url=os.environ["GATEWAY_URL"], headers={"apikey": key}, timeout=10) as client:
        people = await make_people(client, os.environ["SUPABASE_SERVICE_ROLE_KEY"])
        times: dict[str, list[float]] = {kind: [] for kind in people}
        answers: set[tuple[int, bytes]] = set()
        for _ in range(SAMPLES):
            for kind, email in people.items():
                took_ms, answer = await sign_in(client, email)
                times[kind].append(took_ms)
                answers.add(answer)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    spread = max(medians.values()) - min(medians.values())
    print(f"load {os.getloadavg()[0]:.1f}; {SAMPLES} each; answers: {answers}")
    print("medians: " + ", ".join(f"{kind} {value:.2f} ms" for kind, value in medians.items()))
    print(f"spread {spread:.2f} ms, allowed {ALLOWED_MS:.0f} ms: {'held' if spread <= ALLOWED_MS else 'BROKEN'}")


if __name__ == "__main__":
    asyncio.run(main())

"""Whether 3,000 requests at once against a limit of 100 are counted to the request, over all replicas given.

    eval "$(make -s env)" && .venv/bin/python -m bench.limits

The stack needs the limit: make up SCALE="gateway=2" RATE_LIMIT_MAX_REQUESTS=100 RATE_LIMIT_WINDOW_MS=900000
"""

import asyncio
import os
import time
from collections import Counter

import httpx

REQUESTS = 3000


async def main() -> None:
    urls = os.environ.get("GATEWAY_URLS", os.environ["GATEWAY_URL"]).replace(",", " ").split()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        started = time.perf_counter()
        answers = await asyncio.gather(*(client.get(f"{urls[n % len(urls)]}/v1/profile") for n in range(REQUESTS)))
        took_s = time.perf_counter() - started
    counts = Counter(answer.status_code for answer in answers)
    policy = answers[0].headers.get("ratelimit-policy", "?")
    print(f"load {os.getloadavg()[0]:.1f}; {len(urls)} replicas; {REQUESTS} at once in {took_s:.1f} s; {policy}")
    print(f"answers: {dict(counts)} (401: let through and asked to sign in)")


if __name__ == "__main__":
    asyncio.run(main())

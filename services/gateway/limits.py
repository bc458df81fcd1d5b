"""Rate limits: GCRA in one Lua call on Redis's own clock, and a local limiter of the same shape when Redis is away."""

import asyncio
import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple

import structlog

from libs.common.redis import Line, NoScriptError, Redis, RedisError

log = structlog.get_logger(__name__)

RETRY_REDIS_AFTER_S: Final = 1.0
_BATCH: Final = 256
_PATIENCE_S: Final = (0.15, 0.05, 0.05)
_LOCAL_KEYS: Final = 50_000

# KEYS: buckets. ARGV[1]: for each, microseconds per request and burst tolerance in microseconds, all in one text, which
# the client need not pack one by one. Returns, for each: whether it is allowed, microseconds until a request would be,
# microseconds until the bucket is empty. One call for all who ask at the moment takes half the time of a pipeline of
# calls, which also asks each time whether Redis has the script.
_GCRA: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local verdicts = {}
local next_number = string.gmatch(ARGV[1], '%d+')
for number, key in ipairs(KEYS) do
    local interval = tonumber(next_number())
    local tolerance = tonumber(next_number())
    local tat = tonumber(redis.call('GET', key) or now)
    if tat < now then tat = now end
    local over = tat + interval - tolerance - now
    if over > 0 then
        verdicts[number] = {0, over, tat - now}
    else
        tat = tat + interval
        redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
        verdicts[number] = {1, 0, tat - now}
    end
end
return verdicts
"""
_GCRA_SHA: Final = hashlib.sha1(_GCRA.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """So many requests in a window, all of which may come at once."""

    name: str
    max_requests: int
    window_ms: int
    interval_us: int = field(init=False)
    tolerance_us: int = field(init=False)
    policy: str = field(init=False)
    """As a header says it."""

    def __post_init__(self) -> None:
        # Once a limit instead of three times a request.
        interval_us = max(1, self.window_ms * 1000 // self.max_requests)
        object.__setattr__(self, "interval_us", interval_us)
        object.__setattr__(self, "tolerance_us", interval_us * self.max_requests)
        object.__setattr__(self, "policy", f'"{self.name}";q={self.max_requests};w={self.window_ms // 1000}')


class Verdict(NamedTuple):
    allowed: bool
    remaining: int
    retry_after_s: int
    reset_s: int
    limit: Limit


def headers_of(verdicts: Sequence[Verdict]) -> list[tuple[bytes, bytes]]:
    """draft-ietf-httpapi-ratelimit-headers: quota and window are the policy, what is left until when the state."""
    policies = ", ".join([one.limit.policy for one in verdicts])
    states = ", ".join([f'"{one.limit.name}";r={one.remaining};t={one.reset_s}' for one in verdicts])
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", states.encode())]


def judge(limit: Limit, *, allowed: bool, over_us: float, until_empty_us: float) -> Verdict:
    used = until_empty_us / limit.interval_us
    return Verdict(
        allowed=allowed,
        remaining=max(0, int(limit.max_requests - used + 1e-6)),
        retry_after_s=0 if allowed else max(1, -int(-over_us // 1_000_000)),
        reset_s=max(0, -int(-until_empty_us // 1_000_000)),
        limit=limit,
    )


class LocalLimiter:
    """The same rule in this process's memory, for when Redis is away. Bounded: the oldest bucket goes first."""

    def __init__(self) -> None:
        self._tats: OrderedDict[str, float] = OrderedDict()

    def take(self, key: str, limit: Limit) -> Verdict:
        now_us = time.monotonic() * 1_000_000
        tat = max(self._tats.pop(key, now_us), now_us)
        over_us = tat + limit.interval_us - limit.tolerance_us - now_us
        allowed = over_us <= 0
        if allowed:
            tat += limit.interval_us
        self._tats[key] = tat
        if len(self._tats) > _LOCAL_KEYS:
            self._tats.popitem(last=False)
        return judge(limit, allowed=allowed, over_us=max(0.0, over_us), until_empty_us=tat - now_us)


@lru_cache(maxsize=2_000)
def _key_of(limit_name: str, subject: str) -> str:
    """Hashed: an address or id that came from outside is never part of a key as it came."""
    return f"rl:{limit_name}:{hashlib.sha256(subject.encode()).hexdigest()[:32]}"


class _Ask(NamedTuple):
    key: str
    limit: Limit
    answer: "asyncio.Future[Verdict]"


class _Patience:
    """TimeoutError for a body that takes longer than all of `_PATIENCE_S`, looked at once after each of them.

    More than once: a busy loop that has not yet read the answer is no absent Redis, and reads it between two looks.
    """

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._left = deque(_PATIENCE_S)
        self._timer = loop.call_later(self._left.popleft(), self._look, loop)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._timer.cancel()
        return await self._timeout.__aexit__(kind, error, trace)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._left:
            self._timer = loop.call_later(self._left.popleft(), self._look, loop)
        else:
            self._timeout.reschedule(loop.time())


class RateLimiter:
    """Counts in Redis, so that replicas share a limit; falls back to memory in time, never open.

    Requests that arrive together are asked for together, on one connection: a burst costs neither a connection nor a
    round trip each, and so cannot exhaust what it is counted with.
    """

    def __init__(self, redis: Redis) -> None:
        """`redis` needs no timeout of its own for a socket: `_PATIENCE_S` bounds each call."""
        self._redis = Line(redis)
        self._local = LocalLimiter()
        self._redis_back_at = 0.0
        self._asks: deque[_Ask] = deque()
        self._is_at_work = False
        self._next: asyncio.Task[None] | None = None

    async def take(self, subject: str, limit: Limit) -> Verdict:
        key = _key_of(limit.name, subject)
        if time.monotonic() < self._redis_back_at:
            return self._local.take(key, limit)
        ask = _Ask(key=key, limit=limit, answer=asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        if not self._is_at_work:
            self._is_at_work = True
            await self._ask_for_all()
        return await ask.answer

    async def _ask_for_all(self) -> None:
        """Who finds nobody at it asks for all who come in this turn of the loop; what comes later is the next batch.

        A task for it would be one more turn of the loop for who asks alone.
        """
        batch: list[_Ask] = []
        rows: Sequence[Any] | None = None
        try:
            await asyncio.sleep(0)
            batch = [self._asks.popleft() for _ in range(min(len(self._asks), _BATCH))]
            rows = await self._ask_redis(batch)
        finally:  # in any case: the others depend on it
            self._tell(batch, rows)
            self._next = asyncio.create_task(self._ask_for_all()) if self._asks else None
            self._is_at_work = self._next is not None

    def _tell(self, batch: Sequence[_Ask], rows: Sequence[Any] | None) -> None:
        for ask, row in zip(batch, rows or [None] * len(batch), strict=True):
            if ask.answer.done():  # its request was given up meanwhile
                continue
            if row is None:
                ask.answer.set_result(self._local.take(ask.key, ask.limit))
            else:
                allowed, over_us, until_empty_us = row
                verdict = judge(ask.limit, allowed=bool(allowed), over_us=over_us, until_empty_us=until_empty_us)
                ask.answer.set_result(verdict)

    async def _ask_redis(self, batch: Sequence[_Ask]) -> Sequence[Any] | None:
        """The script's answers in order, None if Redis did not answer in time."""
        if time.monotonic() < self._redis_back_at:
            return None
        try:
            async with _Patience():
                return await self._run_script(batch)
        except (RedisError, OSError, TimeoutError) as error:
            self._redis_back_at = time.monotonic() + RETRY_REDIS_AFTER_S
            log.warning("rate_limiter_local", error=type(error).__name__)
            return None

    async def _run_script(self, batch: Sequence[_Ask]) -> list[Any]:
        keys = [ask.key for ask in batch]
        numbers = " ".join([f"{ask.limit.interval_us} {ask.limit.tolerance_us}" for ask in batch])
        try:
            return await self._redis.ask("EVALSHA", _GCRA_SHA, len(keys), *keys, numbers)
        except NoScriptError:  # Redis is new, or was told to forget
            return await self._redis.ask("EVAL", _GCRA, len(keys), *keys, numbers)

"""Who stands behind a request: the token's identity, and the user's standing as the database had it seconds ago."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Annotated, Final, Protocol
from uuid import UUID

import structlog
from fastapi import Depends, Request

from libs.common.database import Connection, Database
from libs.common.errors import Unavailable
from services.gateway.accounts import queries as accounts
from services.gateway.auth import queries as auth
from services.gateway.domain import AdminRequired, Identity, SignInRequired, Standing, is_admin

log = structlog.get_logger(__name__)

STANDING_TTL_S: Final = 3.0
"""Admin rights, bans and tiers take effect within this time in every replica; the promise is 5 s."""
RENEW_EVERY_S: Final = 1.5
KEPT_WARM_S: Final = 60.0
"""Whoever asked within this time finds what is known of them fresh. In front of an answer the read of one user takes
0.3 to 0.5 ms, which was what made the slowest twentieth of calm reads slow."""
MOST_KEPT_WARM: Final = 1_000
_READ_AT_ONCE: Final = 100
"""Between two batches whoever waits for the loop is served."""
_CACHE_SIZE: Final = 50_000


@dataclass(slots=True, eq=False)
class Read:
    """What was read of a user (None: there is no such account), until when it is good, and when somebody last asked.

    Times are monotonic.
    """

    standing: Standing | None
    over_at: float
    asked_at: float


class StandingCache:
    """What was read of users lately; whoever learns of a change makes it forget."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[UUID, Read] = OrderedDict()

    def get(self, user_id: UUID) -> Read | None:
        entry = self._entries.get(user_id)
        now = self._clock()
        if entry is None or entry.over_at <= now:
            return None
        entry.asked_at = now
        return entry

    def put(self, user_id: UUID, standing: Standing | None) -> None:
        now = self._clock()
        self._keep(user_id, Read(standing, over_at=now + STANDING_TTL_S, asked_at=now))
        # All live equally long, so those that are over stand in front: what is kept is what is still worth something.
        while next(iter(self._entries.values())).over_at <= now or len(self._entries) > _CACHE_SIZE:
            self._entries.popitem(last=False)

    def warm(self) -> Mapping[UUID, Read]:
        """Those who asked lately, and if these are too many, who asked last."""
        since = self._clock() - KEPT_WARM_S
        lately = [pair for pair in self._entries.items() if pair[1].asked_at > since and pair[1].standing is not None]
        if len(lately) > MOST_KEPT_WARM:
            lately = nlargest(MOST_KEPT_WARM, lately, key=lambda pair: pair[1].asked_at)
        return dict(lately)

    def renew(self, user_id: UUID, read: Read, standing: Standing | None) -> None:
        """What is read of them now takes the place of `read`, unless somebody knew better meanwhile."""
        if self._entries.get(user_id) is read:
            self._keep(user_id, Read(standing, over_at=self._clock() + STANDING_TTL_S, asked_at=read.asked_at))

    def _keep(self, user_id: UUID, read: Read) -> None:
        self._entries[user_id] = read
        self._entries.move_to_end(user_id)

    def forget(self, user_id: UUID) -> None:
        self._entries.pop(user_id, None)


class Standings:
    """`keep_in_step` is given where another house signs people in: their rows here follow what their tokens say."""

    def __init__(
        self,
        database: Database,
        cache: StandingCache,
        *,
        admin_user_ids: tuple[str, ...],
        keep_in_step: Callable[[Connection, Identity], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._cache = cache
        self._admin_user_ids = admin_user_ids
        self._keep_in_step = keep_in_step

    async def of(self, identity: Identity) -> Standing:
        """Raises SignInRequired for an account that no longer exists."""
        read = self._cache.get(identity.user_id)
        if read is not None:
            standing = read.standing
        else:
            standing = await self._read(identity)
            self._cache.put(identity.user_id, standing)
        if standing is None:
            raise SignInRequired("This account does not exist any more.")
        return standing

    async def run(self) -> None:
        """For sign-in of our own: elsewhere each read goes with a token, which may say something new."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew()
            except Unavailable as error:  # who asks next, after its time, waits for the database and is told
                log.info("standings_not_renewed", error=error.code)

    async def renew(self) -> None:
        """Read again of those who asked lately, many in one statement, so that they need not wait for it."""
        warm = self._cache.warm()
        user_ids = list(warm)
        for start in range(0, len(user_ids), _READ_AT_ONCE):
            some = user_ids[start : start + _READ_AT_ONCE]
            async with self._database.statement() as conn:
                standings = await self._find(conn, some)
            for user_id in some:
                self._cache.renew(user_id, warm[user_id], standings.get(user_id))

    async def _read(self, identity: Identity) -> Standing | None:
        user_id = identity.user_id
        if self._keep_in_step is not None:
            async with self._database.transaction() as conn:
                await self._keep_in_step(conn, identity)
                return (await self._find(conn, [user_id])).get(user_id)
        # Who comes for the first time waits for this: one round trip to the database instead of three.
        async with self._database.statement() as conn:
            return (await self._find(conn, [user_id])).get(user_id)

    async def _find(self, conn: Connection, user_ids: Sequence[UUID]) -> dict[UUID, Standing]:
        return {
            user_id: Standing(
                tier=row["subscription_tier"],
                is_admin=is_admin(
                    user_id,
                    features=row["premium_features"],
                    app_metadata=row["raw_app_meta_data"],
                    listed=self._admin_user_ids,
                ),
                is_banned=row["is_banned"],
            )
            for user_id, row in (await accounts.list_standings(conn, user_ids)).items()
        }


class Sessions(Protocol):
    async def require(self, identity: Identity) -> None:
        """Raises SignInRequired for a token whose session was ended."""
        ...


class OwnSessions:
    """Sessions of our own sign-in: a row each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def require(self, identity: Identity) -> None:
        if identity.session_id is not None:
            async with self._database.statement() as conn:
                if await auth.session_exists(conn, identity.session_id):
                    return
        raise SignInRequired("This session has ended; sign in again.")


async def require_live_session(request: Request, identity: Identity) -> None:
    """For money, keys, accounts and admins: a token whose session was ended is refused at once."""
    sessions: Sessions = request.state.sessions
    await sessions.require(identity)


async def _identity(request: Request) -> Identity:  # async: a plain function would cost a thread hop
    identity = getattr(request.state, "identity", None)
    if not isinstance(identity, Identity):
        raise SignInRequired("Sign in, and send the access token as a bearer token.")
    return identity


async def _admin(request: Request) -> Identity:
    standing = getattr(request.state, "standing", None)
    if not isinstance(standing, Standing) or not standing.is_admin:
        raise AdminRequired("There is nothing here.")
    return await _live_identity(request)


async def _live_identity(request: Request) -> Identity:
    identity = await _identity(request)
    await require_live_session(request, identity)
    return identity


CurrentIdentity = Annotated[Identity, Depends(_identity)]
LiveIdentity = Annotated[Identity, Depends(_live_identity)]
CurrentAdmin = Annotated[Identity, Depends(_admin)]
"""An admin whose session is alive."""

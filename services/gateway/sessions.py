"""Who stands behind a request: the token's identity, and the user's standing as the database had it seconds ago."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
RENEW_AFTER_S: Final = 2.0
"""From then on it is read again behind the back of who asks, so that nobody who goes on asking waits for it."""
_CACHE_SIZE: Final = 50_000


@dataclass(slots=True)
class Read:
    """What was read of a user (None: there is no such account), and until when it is good; times are monotonic."""

    standing: Standing | None
    renew_at: float
    over_at: float


class StandingCache:
    """What was read of users lately; whoever learns of a change makes it forget."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._entries: OrderedDict[UUID, Read] = OrderedDict()

    def get(self, user_id: UUID) -> Read | None:
        entry = self._entries.get(user_id)
        return entry if entry is not None and entry.over_at > self.clock() else None

    def put(self, user_id: UUID, standing: Standing | None) -> None:
        now = self.clock()
        self._entries[user_id] = Read(standing, now + RENEW_AFTER_S, now + STANDING_TTL_S)
        self._entries.move_to_end(user_id)
        # All live equally long, so those that are over stand in front: what is kept is what is still worth something.
        while next(iter(self._entries.values())).over_at <= now or len(self._entries) > _CACHE_SIZE:
            self._entries.popitem(last=False)

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
        self._renewals: set[asyncio.Task[None]] = set()

    async def of(self, identity: Identity) -> Standing:
        """Raises SignInRequired for an account that no longer exists."""
        read = self._cache.get(identity.user_id)
        if read is None:
            standing = await self._read(identity)
            self._cache.put(identity.user_id, standing)
        else:
            standing = read.standing
            if read.renew_at <= self._cache.clock():
                read.renew_at = read.over_at  # once
                renewal = asyncio.create_task(self._renew(identity))
                self._renewals.add(renewal)
                renewal.add_done_callback(self._renewals.discard)
        if standing is None:
            raise SignInRequired("This account does not exist any more.")
        return standing

    async def _renew(self, identity: Identity) -> None:
        try:
            self._cache.put(identity.user_id, await self._read(identity))
        except Unavailable as error:  # who asks next, after its time, waits for the database and is told
            log.info("standing_not_renewed", error=error.code)

    async def _read(self, identity: Identity) -> Standing | None:
        user_id = identity.user_id
        if self._keep_in_step is not None:
            async with self._database.transaction() as conn:
                await self._keep_in_step(conn, identity)
                row = await accounts.find_standing(conn, user_id)
        else:
            # Every user's next request after 3 s waits for this: one round trip to the database instead of three.
            async with self._database.statement() as conn:
                row = await accounts.find_standing(conn, user_id)
        if row is None:
            return None
        return Standing(
            tier=row["subscription_tier"],
            is_admin=is_admin(
                user_id,
                features=row["premium_features"],
                app_metadata=row["raw_app_meta_data"],
                listed=self._admin_user_ids,
            ),
            is_banned=row["is_banned"],
        )


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

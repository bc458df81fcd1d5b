"""Who may enter the console: a cookie sealed by a live session of an admin, a form token on every change.

Invariants: a session that was ended, a ban and a right taken away count at the next request (standings are at most 3 s
old); who is signed in and no admin gets 404 for every page, the way in included; a user with a second factor shows it
before anything else.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

from fastapi import Depends, Request, Response

from libs.common.database import Database
from libs.common.errors import Forbidden, VentureError
from services.gateway.auth import queries as auth
from services.gateway.auth.operations import SignedIn
from services.gateway.console import queries
from services.gateway.console.domain import cookie_of, form_token, is_cookie_seal, is_form_token, read_cookie
from services.gateway.domain import AdminRequired, Identity, RateLimited
from services.gateway.factors import queries as factors
from services.gateway.factors.domain import matching_step
from services.gateway.gate import client_network
from services.gateway.limits import Limit, RateLimiter
from services.gateway.sessions import Standings

COOKIE: Final = "venture_console"
MAX_AGE_S: Final = 12 * 3600
MAX_FORM_FIELDS: Final = 50
_CODE: Final = Limit(name="console-code", max_requests=5, window_ms=300_000)


class SignInFirst(Exception):
    """Nobody is signed in here."""


class CodeFirst(Exception):
    """The session still has to show its user's second factor."""


class ForeignForm(Forbidden):
    code = "gateway.foreign_form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    identity: Identity
    session_id: UUID
    needs_code: bool
    key: bytes = field(repr=False)
    """The session's own, which its cookie and forms are sealed with."""

    @property
    def form_token(self) -> str:
        return form_token(self.key)

    @property
    def user_id(self) -> UUID:
        return self.identity.user_id

    @property
    def email(self) -> str:
        return self.identity.email


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    general: Limit
    sign_in: Limit
    trusted_proxy_hops: int


PasswordSignIn = Callable[[str, str], Awaitable[SignedIn]]
"""A new session for an address and its password. Raises AuthError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the gate knows of people, too: how they prove who they are, what they may, how often they may ask."""

    database: Database
    sign_in: PasswordSignIn
    verify: Callable[[str], Awaitable[Identity]]
    standings: Standings
    limiter: RateLimiter
    limits: DoorLimits


class Door:
    def __init__(self, access: Access, *, origin: str) -> None:
        self._access = access
        self._database = access.database
        self._standings = access.standings
        self._limiter = access.limiter
        self._limits = access.limits
        self._origin = origin
        self._is_secure = origin.startswith("https://")

    async def guard(self, request: Request) -> None:
        """A dependency of every page. Raises SignInFirst, CodeFirst, AdminRequired, ForeignForm, RateLimited."""
        entrant = await self.entrant(request)
        if entrant is None:
            await self._take(request, self._limits.general)
            raise SignInFirst
        if entrant.needs_code:
            raise CodeFirst
        await self.read_form(request, entrant)
        request.state.entrant = entrant

    async def entrant(self, request: Request) -> Entrant | None:
        """Whoever the cookie stands for, None if it stands for nobody (any more). Raises AdminRequired."""
        await self._turn_away_bearers(request)
        cookie = read_cookie(request.cookies.get(COOKIE, ""))
        if cookie is None:
            return None
        session_id, seal = cookie
        async with self._database.transaction() as conn:
            row = await queries.find_session(conn, session_id, max_age_s=MAX_AGE_S)
        if row is None or not is_cookie_seal(seal, row["refresh_key"]):
            return None
        identity = _identity(row["user_id"], session_id, row["email"])
        await self._require_admin(identity)
        return Entrant(
            identity=identity,
            session_id=session_id,
            needs_code=row["needs_code"],
            key=row["refresh_key"],
        )

    async def is_still_in(self, request: Request) -> bool:
        """For open streams, which outlive the look at their beginning."""
        try:
            entrant = await self.entrant(request)
        except VentureError:
            return False
        return entrant is not None and not entrant.needs_code

    async def read_form(self, request: Request, entrant: Entrant) -> None:
        """Keep the fields of a change in `request.state.form`. Raises ForeignForm for one that is not our page's."""
        request.state.form = {}
        if request.method in {"GET", "HEAD"}:
            return
        self.require_own_origin(request)
        form = await form_of(request)
        token = request.headers.get("x-csrf-token") or form.pop("csrf", "")
        if not is_form_token(token, entrant.key):
            raise ForeignForm("This form is not from a page of this session; load the page again.")
        request.state.form = form

    def require_own_origin(self, request: Request) -> None:
        """Browsers say where a form was sent from; what does not say so was not sent by one. Raises ForeignForm."""
        origin = request.headers.get("origin", "")
        if origin not in {self._origin, f"{request.url.scheme}://{request.headers.get('host', '')}"}:
            raise ForeignForm("This form was sent from another site.")

    async def sign_in(self, request: Request, *, email: str, password: str) -> tuple[SignedIn, bool]:
        """A session for an admin, and whether a code is still wanted. Raises AuthError, AdminRequired, RateLimited."""
        await self._turn_away_bearers(request)
        self.require_own_origin(request)
        await self._take(request, self._limits.sign_in)
        signed_in = await self._access.sign_in(email, password)
        user = signed_in.user
        try:
            await self._require_admin(_identity(user.id, signed_in.session.id, user.email or ""))
        except VentureError:
            await self.sign_out(user.id, signed_in.session.id)  # nobody is left with a session they did not get
            raise
        return signed_in, any(factor["status"] == "verified" for factor in user.factors)

    async def check_code(self, entrant: Entrant, code: str) -> bool:
        """Raise the session if the code is one of the user's; five guesses in five minutes."""
        verdict = await self._limiter.take(f"user:{entrant.user_id}", _CODE)
        if not verdict.allowed:
            raise RateLimited("Too many codes were tried.", retry_after_s=verdict.retry_after_s)
        async with self._database.transaction() as conn:
            for factor_id in await queries.list_factors(conn, entrant.user_id):
                factor = await factors.find_factor(conn, user_id=entrant.user_id, factor_id=factor_id)
                if factor is None:
                    continue
                step = matching_step(factor["secret"], code, now_s=factor["now_s"], last_step=factor["last_step"])
                if step is not None:
                    await factors.mark_verified(conn, factor_id=factor_id, step=step)
                    await factors.raise_session(conn, session_id=entrant.session_id, user_id=entrant.user_id)
                    return True
        return False

    async def sign_out(self, user_id: UUID, session_id: UUID) -> None:
        async with self._database.transaction() as conn:
            await auth.delete_sessions(conn, user_id=user_id, session_id=session_id, scope="local")

    def give_cookie(self, response: Response, signed_in: SignedIn) -> None:
        response.set_cookie(
            COOKIE,
            cookie_of(signed_in.session.id, signed_in.session.refresh_key),
            max_age=MAX_AGE_S,
            path="/console",
            secure=self._is_secure,
            httponly=True,
            samesite="strict",
        )

    def take_cookie(self, response: Response) -> None:
        response.delete_cookie(COOKIE, path="/console", secure=self._is_secure, httponly=True, samesite="strict")

    async def _turn_away_bearers(self, request: Request) -> None:
        """A program with a user's token learns as little here as on the routes of admins."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return
        try:
            await self._require_admin(await self._access.verify(token.strip()))
        except VentureError:
            raise AdminRequired("There is nothing here.") from None

    async def _require_admin(self, identity: Identity) -> None:
        standing = await self._standings.of(identity)
        if not standing.is_admin or standing.is_banned:
            raise AdminRequired("There is nothing here.")

    async def _take(self, request: Request, limit: Limit) -> None:
        network = client_network(request.scope, trusted_hops=self._limits.trusted_proxy_hops)
        verdict = await self._limiter.take(f"ip:{network}", limit)
        if not verdict.allowed:
            raise RateLimited("Too many requests from here.", retry_after_s=verdict.retry_after_s)


async def form_of(request: Request) -> dict[str, str]:
    body = (await request.body()).decode("utf-8", "replace").replace("%00", "")
    return dict(parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS))


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _identity(user_id: UUID, session_id: UUID, email: str) -> Identity:
    claims = {"sub": str(user_id), "role": "authenticated", "session_id": str(session_id)}
    return Identity(user_id=user_id, session_id=session_id, email=email, claims=claims)


async def _entrant(request: Request) -> Entrant:  # async: a plain function would cost a thread hop
    return request.state.entrant


async def _form(request: Request) -> dict[str, str]:
    return request.state.form


Entered = Annotated[Entrant, Depends(_entrant)]
Form = Annotated[dict[str, str], Depends(_form)]

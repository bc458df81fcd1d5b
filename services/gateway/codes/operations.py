"""Issuing and redeeming one-time codes: one transaction each, handed in."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never
from urllib.parse import urlencode
from uuid import UUID

from libs.common.database import Connection, Record
from services.gateway.auth import operations as accounts
from services.gateway.auth import queries as users
from services.gateway.auth.domain import AuthError, User
from services.gateway.auth.operations import SignedIn
from services.gateway.codes import queries
from services.gateway.codes.domain import (
    MAX_MAILS_AN_HOUR,
    Flow,
    Issued,
    Kind,
    Redeemed,
    code_hash,
    fits_challenge,
    new_secrets,
    otp_expired,
)
from services.gateway.mail import queries as mail


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailing:
    """A code on its way into a mail: which letter, which type its link names, where the link leads in the end."""

    letter: str
    link_type: str
    redirect_to: str
    flow: Flow | None = None
    flow_method: str = ""


class Links:
    """Links in mails. Their host is the configured address, whatever a request claims to have been sent to."""

    def __init__(self, *, issuer: str) -> None:
        self._issuer = issuer

    def verify_url(self, token: str, link_type: str, redirect_to: str) -> str:
        query = urlencode({"token": token, "type": link_type, "redirect_to": redirect_to})
        return f"{self._issuer}/verify?{query}"


async def require_mail_slot(conn: Connection, *, email: str, kind: str, interval_s: int) -> None:
    """Raises AuthError over_email_send_rate_limit, for accounts and for addresses without one alike."""
    if not await queries.take_mail_slot(conn, email=email, kind=kind, interval_s=interval_s):
        raise AuthError(
            429,
            "over_email_send_rate_limit",
            f"For security purposes, you can only request this once in {interval_s} seconds, "
            f"{MAX_MAILS_AN_HOUR} times an hour.",
        )


async def issue(
    conn: Connection, *, user: User, kind: Kind, email: str, redirect_to: str, flow_id: UUID | None = None
) -> Issued:
    """Make a code, in place of an earlier one of its kind."""
    issued = new_secrets(is_pkce=flow_id is not None)
    await queries.upsert_code(
        conn,
        user_id=user.id,
        kind=kind,
        email=email,
        issued=issued,
        redirect_to=redirect_to,
        flow_state_id=flow_id,
    )
    return issued


async def mail_code(conn: Connection, *, user: User, kind: Kind, email: str, mailing: Mailing, link: Links) -> None:
    """Issue a code and write the letter that carries it, in one transaction with whatever it is about."""
    flow_id = None
    if mailing.flow is not None:
        flow_id = await queries.insert_flow(conn, user_id=user.id, flow=mailing.flow, method=mailing.flow_method)
    issued = await issue(conn, user=user, kind=kind, email=email, redirect_to=mailing.redirect_to, flow_id=flow_id)
    url = link.verify_url(issued.token, mailing.link_type, mailing.redirect_to)
    await mail.insert_mail(conn, address=email, letter=mailing.letter, content={"code": issued.code, "link": url})
    await users.mark_mailed(conn, user_id=user.id, kind="invite" if mailing.letter == "invite" else kind.value)


async def redeem_code(conn: Connection, *, email: str, kinds: list[str], code: str) -> Redeemed | None:
    """Use up a code, or count a wrong guess: the caller must commit before it refuses."""
    rows = await queries.count_attempts(conn, email=email, kinds=kinds)
    return await _take_matching(conn, rows, code)


async def redeem_nonce(conn: Connection, *, user_id: UUID, code: str) -> bool:
    """Whether the code is the one mailed for reauthentication; uses it up, or counts a wrong guess."""
    rows = await queries.count_attempts_of(conn, user_id=user_id, kind=Kind.REAUTHENTICATION)
    return await _take_matching(conn, rows, code) is not None


async def _take_matching(conn: Connection, rows: list[Record], code: str) -> Redeemed | None:
    for row in rows:
        if hmac.compare_digest(row["code_hash"], code_hash(row["user_id"], row["kind"], code)):
            return await queries.take_by_id(conn, row["id"])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a redeemed code came to: an account proven to be the mailbox's, or the first half of a change of address."""

    user: User
    is_first_half: bool = False


async def apply(conn: Connection, redeemed: Redeemed) -> Verified:
    """Do what the code stands for. Raises AuthError: the account is gone, banned, or has another address by now."""
    user = await users.find_user(conn, redeemed.user_id)
    if user is None:
        raise otp_expired()
    if user.is_banned(await conn.fetchval("SELECT now()")):
        raise AuthError(403, "user_banned", "User is banned")
    match redeemed.kind:
        case Kind.CONFIRMATION | Kind.RECOVERY:
            await _confirm(conn, user, redeemed)
        case Kind.EMAIL_CHANGE_NEW | Kind.EMAIL_CHANGE_CURRENT:
            if not await _change_email(conn, user):
                return Verified(user=user, is_first_half=True)
        case Kind.REAUTHENTICATION:
            raise otp_expired()
        case _:
            assert_never(redeemed.kind)
    return Verified(user=await accounts.get_user(conn, user.id))


async def _confirm(conn: Connection, user: User, redeemed: Redeemed) -> None:
    if user.email != redeemed.email:
        raise otp_expired()
    if user.email_confirmed_at is None and redeemed.kind is Kind.RECOVERY:
        # Whoever signed up with this address never proved it was theirs: their password ends where the owner begins.
        await users.clear_password(conn, user.id)
        await users.delete_sessions(conn, user_id=user.id, session_id=None, scope="global")
    if user.email_confirmed_at is None:
        await users.mark_email_confirmed(conn, user.id)


async def _change_email(conn: Connection, user: User) -> bool:
    """Count one confirmation; with the last one the address changes, and what was mailed to the old one is void."""
    pending = await users.confirm_email_change(conn, user.id)
    if pending is None:
        raise otp_expired()
    email, missing = pending
    if missing:
        return False
    await change_email_now(conn, user, email)
    return True


async def change_email_now(conn: Connection, user: User, email: str) -> None:
    await users.set_email(conn, user_id=user.id, email=email)
    await users.mark_email_confirmed(conn, user.id)
    await queries.delete_codes(conn, user.id)
    if user.email:
        await mail.insert_mail(conn, address=user.email, letter="email_changed", content={})


async def start_email_change(
    conn: Connection, *, user: User, email: str, is_secure: bool, mailing: Mailing, links: Links
) -> None:
    """Mail the new address, and with secure change the old one, too; both must then be confirmed."""
    both = is_secure and bool(user.email)
    await users.mark_email_change(conn, user_id=user.id, email=email, confirms=2 if both else 1)
    await mail_code(conn, user=user, kind=Kind.EMAIL_CHANGE_NEW, email=email, mailing=mailing, link=links)
    if both and user.email:
        current = Mailing(
            letter="email_change_current",
            link_type=mailing.link_type,
            redirect_to=mailing.redirect_to,
            flow=mailing.flow,
            flow_method=mailing.flow_method,
        )
        await mail_code(conn, user=user, kind=Kind.EMAIL_CHANGE_CURRENT, email=user.email, mailing=current, link=links)


async def exchange_flow(conn: Connection, *, auth_code: UUID, verifier: str) -> SignedIn:
    """Exchange a redirect's code for a session, once, for the client that began the flow."""
    row = await queries.lock_flow(conn, auth_code)
    if row is None or row["user_id"] is None:
        raise AuthError(404, "flow_state_not_found", "invalid flow state, no valid flow state found")
    if row["is_expired"]:
        raise AuthError(422, "flow_state_expired", "invalid flow state, flow state has expired")
    if not fits_challenge(verifier, row["code_challenge"]):
        raise AuthError(400, "bad_code_verifier", "code challenge does not match previously saved code verifier")
    await queries.delete_flow(conn, row["id"])
    user = await accounts.get_user(conn, row["user_id"])
    if user.is_banned(await conn.fetchval("SELECT now()")):
        raise AuthError(400, "user_banned", "User is banned")
    return await accounts.start_session(conn, user_id=user.id, method=row["authentication_method"])


async def create_unconfirmed(conn: Connection, *, email: str, metadata: Mapping[str, Any]) -> User:
    """An account somebody asked for by mail alone: no password, and nothing proven yet."""
    return await accounts.create_user(conn, email=email, password_hash=None, is_confirmed=False, user_metadata=metadata)

"""SQL of one-time codes, PKCE flows and how often mail was asked for."""

import hashlib
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.ids import new_id
from services.gateway.codes.domain import (
    CODE_LIFETIME_S,
    FLOW_LIFETIME_S,
    LINK_LIFETIME_S,
    MAX_ATTEMPTS,
    MAX_MAILS_AN_HOUR,
    Flow,
    Issued,
    Kind,
    Redeemed,
    code_hash,
    token_hash,
)


async def upsert_code(
    conn: Connection,
    *,
    user_id: UUID,
    kind: Kind,
    email: str,
    issued: Issued,
    redirect_to: str | None,
    flow_state_id: UUID | None,
) -> None:
    await conn.execute(
        """
        INSERT INTO auth.one_time_tokens (
            id, user_id, kind, token_hash, code_hash, email, redirect_to, flow_state_id, expires_at, code_expires_at
        ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + make_interval(secs => $9), now() + make_interval(secs => $10))
        ON CONFLICT (user_id, kind) DO UPDATE  -- a new code voids the old one, also when two are asked for at once
        SET id = excluded.id, token_hash = excluded.token_hash, code_hash = excluded.code_hash, email = excluded.email,
            redirect_to = excluded.redirect_to, flow_state_id = excluded.flow_state_id, attempts = 0,
            expires_at = excluded.expires_at, code_expires_at = excluded.code_expires_at, created_at = now()
        """,
        new_id(),
        user_id,
        kind.value,
        token_hash(issued.token),
        code_hash(user_id, kind.value, issued.code),
        email,
        redirect_to,
        flow_state_id,
        LINK_LIFETIME_S[kind],
        CODE_LIFETIME_S,
    )


async def take_by_token(conn: Connection, *, token: str, kinds: list[str]) -> Redeemed | None:
    """Use up a link. One statement: of any number of uses at once exactly one gets the row."""
    row = await conn.fetchrow(
        """
        DELETE FROM auth.one_time_tokens WHERE token_hash = $1 AND kind = ANY($2::text[]) AND expires_at > now()
        RETURNING user_id, kind, email, redirect_to, flow_state_id
        """,
        token_hash(token),
        kinds,
    )
    return _redeemed(row) if row is not None else None


async def count_attempts(conn: Connection, *, email: str, kinds: list[str]) -> list[Record]:
    """Count one guess against every living code of the address that has guesses left, and return those."""
    return await conn.fetch(
        """
        UPDATE auth.one_time_tokens SET attempts = attempts + 1
        WHERE email = $1 AND kind = ANY($2::text[]) AND code_expires_at > now() AND attempts < $3
        RETURNING id, user_id, kind, code_hash
        """,
        email,
        kinds,
        MAX_ATTEMPTS,
    )


async def count_attempts_of(conn: Connection, *, user_id: UUID, kind: Kind) -> list[Record]:
    return await conn.fetch(
        """
        UPDATE auth.one_time_tokens SET attempts = attempts + 1
        WHERE user_id = $1 AND kind = $2 AND code_expires_at > now() AND attempts < $3
        RETURNING id, user_id, kind, code_hash
        """,
        user_id,
        kind.value,
        MAX_ATTEMPTS,
    )


async def take_by_id(conn: Connection, code_id: UUID) -> Redeemed | None:
    row = await conn.fetchrow(
        "DELETE FROM auth.one_time_tokens WHERE id = $1 RETURNING user_id, kind, email, redirect_to, flow_state_id",
        code_id,
    )
    return _redeemed(row) if row is not None else None


async def delete_codes(conn: Connection, user_id: UUID) -> None:
    await conn.execute("DELETE FROM auth.one_time_tokens WHERE user_id = $1", user_id)


def _redeemed(row: Record) -> Redeemed:
    return Redeemed(
        user_id=row["user_id"],
        kind=Kind(row["kind"]),
        email=row["email"],
        redirect_to=row["redirect_to"],
        flow_state_id=row["flow_state_id"],
    )


async def insert_flow(conn: Connection, *, user_id: UUID, flow: Flow, method: str) -> UUID:
    flow_id = new_id()
    await conn.execute(
        """
        INSERT INTO auth.flow_state (
            id, user_id, auth_code, code_challenge, code_challenge_method, authentication_method
        ) VALUES ($1, $2, gen_random_uuid(), $3, $4, $5)
        """,
        flow_id,
        user_id,
        flow.challenge,
        flow.method,
        method,
    )
    return flow_id


async def issue_auth_code(conn: Connection, flow_id: UUID) -> UUID | None:
    """Begin the short life of a flow's code, for the redirect."""
    return await conn.fetchval(
        "UPDATE auth.flow_state SET issued_at = now() WHERE id = $1 AND issued_at IS NULL RETURNING auth_code", flow_id
    )


async def lock_flow(conn: Connection, auth_code: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT id, user_id, code_challenge, authentication_method,
               issued_at < now() - make_interval(secs => $2) AS is_expired
        FROM auth.flow_state WHERE auth_code = $1 AND issued_at IS NOT NULL
        FOR UPDATE  -- two exchanges at once: the second waits, and finds no row
        """,
        auth_code,
        FLOW_LIFETIME_S,
    )


async def delete_flow(conn: Connection, flow_id: UUID) -> None:
    await conn.execute("DELETE FROM auth.flow_state WHERE id = $1", flow_id)


async def take_mail_slot(conn: Connection, *, email: str, kind: str, interval_s: int) -> bool:
    """Whether mail of this kind may be asked for the address again now; counts it if so.

    By address, not by account: who asks for an address that is nobody's is refused in the same way.
    """
    return bool(
        await conn.fetchval(
            """
            INSERT INTO auth.mail_requests AS r (address_hash, kind) VALUES ($1, $2)
            ON CONFLICT (address_hash, kind) DO UPDATE  -- of two requests at once the second sees the first's time
            SET asked_at = now(),
                hour_began_at = CASE WHEN r.hour_began_at < now() - interval '1 hour' THEN now()
                                     ELSE r.hour_began_at END,
                in_hour = CASE WHEN r.hour_began_at < now() - interval '1 hour' THEN 1 ELSE r.in_hour + 1 END
            WHERE r.asked_at <= now() - make_interval(secs => $3)
              AND (r.in_hour < $4 OR r.hour_began_at < now() - interval '1 hour')
            RETURNING true
            """,
            hashlib.sha256(email.encode("utf-8", "surrogatepass")).digest(),
            kind,
            interval_s,
            MAX_MAILS_AN_HOUR,
        )
    )


async def delete_ended(conn: Connection) -> None:
    """Codes, flows and counts that mean nothing any more."""
    await conn.execute("DELETE FROM auth.one_time_tokens WHERE expires_at < now() - interval '1 hour'")
    await conn.execute("DELETE FROM auth.flow_state WHERE created_at < now() - interval '2 days'")
    await conn.execute("DELETE FROM auth.mail_requests WHERE asked_at < now() - interval '2 hours'")

"""SQL of second factors and challenges."""

from uuid import UUID

import asyncpg

from libs.common.database import Connection, Record
from libs.common.ids import new_id
from services.gateway.auth.domain import AuthError
from services.gateway.factors.domain import CHALLENGE_LIFETIME_S, MAX_ATTEMPTS


async def insert_factor(conn: Connection, *, user_id: UUID, name: str, secret: str) -> UUID:
    factor_id = new_id()
    try:
        await conn.execute(
            """
            INSERT INTO auth.mfa_factors (id, user_id, friendly_name, factor_type, secret)
            VALUES ($1, $2, $3, 'totp', $4)
            """,
            factor_id,
            user_id,
            name,
            secret,
        )
    except asyncpg.UniqueViolationError:
        raise AuthError(
            422, "mfa_factor_name_conflict", "A factor with this friendly name exists for this user already"
        ) from None
    return factor_id


async def delete_unverified(conn: Connection, user_id: UUID) -> None:
    """Enrolments nobody finished make room for a new one."""
    await conn.execute(
        """
        DELETE FROM auth.mfa_factors
        WHERE user_id = $1 AND status = 'unverified' AND created_at < now() - interval '5 minutes'
        """,
        user_id,
    )


async def find_factor(conn: Connection, *, user_id: UUID, factor_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT id, friendly_name, factor_type, status, secret, last_step,
               extract(epoch FROM clock_timestamp())::float8 AS now_s
        FROM auth.mfa_factors WHERE id = $1 AND user_id = $2
        FOR UPDATE  -- two verifications at once: the second sees the step the first has used
        """,
        factor_id,
        user_id,
    )


async def delete_factor(conn: Connection, *, user_id: UUID, factor_id: UUID) -> None:
    await conn.execute("DELETE FROM auth.mfa_factors WHERE id = $1 AND user_id = $2", factor_id, user_id)


async def insert_challenge(conn: Connection, factor_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        INSERT INTO auth.mfa_challenges (id, factor_id, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
        RETURNING id, extract(epoch FROM expires_at)::bigint AS expires_at
        """,
        new_id(),
        factor_id,
        CHALLENGE_LIFETIME_S,
    )


async def count_attempt(conn: Connection, *, challenge_id: UUID, factor_id: UUID) -> bool | None:
    """Count one guess. Whether the challenge still lives, None if there is none."""
    return await conn.fetchval(
        """
        UPDATE auth.mfa_challenges SET attempts = attempts + 1 WHERE id = $1 AND factor_id = $2
        RETURNING expires_at > now() AND attempts <= $3
        """,
        challenge_id,
        factor_id,
        MAX_ATTEMPTS,
    )


async def mark_verified(conn: Connection, *, factor_id: UUID, step: int) -> None:
    await conn.execute(
        "UPDATE auth.mfa_factors SET status = 'verified', last_step = $2, updated_at = now() WHERE id = $1",
        factor_id,
        step,
    )
    await conn.execute("DELETE FROM auth.mfa_challenges WHERE factor_id = $1", factor_id)


async def raise_session(conn: Connection, *, session_id: UUID, user_id: UUID) -> None:
    """The session is aal2 from now on, its refresh token is another, and the user's weaker sessions end."""
    await conn.execute(
        """
        UPDATE auth.sessions
        SET aal = 'aal2', refresh_counter = refresh_counter + 2, refreshed_at = NULL,
            amr = jsonb_build_array(jsonb_build_object(
                'method', 'totp', 'timestamp', extract(epoch FROM now())::bigint)) || amr
        WHERE id = $1
        """,
        session_id,
    )
    await conn.execute(
        "DELETE FROM auth.sessions WHERE user_id = $1 AND id <> $2 AND aal = 'aal1'", user_id, session_id
    )

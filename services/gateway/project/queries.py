"""SQL that keeps the project's users in step with their rows here."""

from uuid import UUID

import asyncpg

from libs.common.database import Connection
from services.gateway.project.domain import ProjectUnavailable, Sighting


async def take_over_user(conn: Connection, user_id: UUID, seen: Sighting) -> None:
    """Make the user at first sight (a trigger makes the profile), follow what a newer token says; never go back.

    Who was deleted here is not made again by a token that has outlived them.
    """
    if seen.email is not None:
        # The project vouches that an address is one user's. A row that still holds it is out of date until its
        # own user is seen again.
        await conn.execute(
            """
            UPDATE auth.users SET email = id || '@moved.invalid'
            WHERE email = $2 AND id <> $1 AND deleted_at IS NULL AND updated_at < $3
            """,
            user_id,
            seen.email,
            seen.at,
        )
    try:
        await conn.execute(
            """
            INSERT INTO auth.users AS u (id, email, email_confirmed_at, raw_app_meta_data, raw_user_meta_data,
                                         is_anonymous, created_at, updated_at)
            SELECT $1, $2, CASE WHEN $2::text IS NOT NULL THEN now() END, $3, $4, $5, now(), $6
            WHERE NOT EXISTS (SELECT 1 FROM gateway.erasures WHERE user_id = $1)
            ON CONFLICT (id) DO UPDATE  -- two first requests at once, and every later one: the newest token stands
            SET email = excluded.email,
                email_confirmed_at = coalesce(u.email_confirmed_at, excluded.email_confirmed_at),
                raw_app_meta_data = excluded.raw_app_meta_data, raw_user_meta_data = excluded.raw_user_meta_data,
                is_anonymous = excluded.is_anonymous, updated_at = excluded.updated_at
            WHERE u.updated_at < excluded.updated_at AND u.deleted_at IS NULL
            """,
            user_id,
            seen.email,
            dict(seen.app_metadata),
            dict(seen.user_metadata),
            seen.is_anonymous,
            seen.at,
        )
    except asyncpg.UniqueViolationError:  # an older token than the row that has its address: ask for a fresh one
        raise ProjectUnavailable("Your sign-in is out of date; refresh it.", retry_after_s=1) from None

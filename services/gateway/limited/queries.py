"""SQL of the record of limited requests."""

from collections.abc import Sequence
from datetime import datetime

from libs.common.database import Connection, Record
from services.gateway.limited.domain import Refusals

KEPT_DAYS = 7


async def add_refusals(conn: Connection, counted: Sequence[Refusals]) -> None:
    await conn.execute(
        """
        INSERT INTO gateway.limited_requests AS l (hour, subject, limit_name, route_group, requests)
        SELECT date_trunc('hour', now()), subject, limit_name, route_group, requests
        FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS c(subject, limit_name, route_group, requests)
        ORDER BY 2, 3, 4
        -- ON CONFLICT: replicas add to the same row; in the order of the key, so that two never block each other
        ON CONFLICT (hour, subject, limit_name, route_group) DO UPDATE
        SET requests = l.requests + excluded.requests, last_at = now()
        """,
        [one.subject for one in counted],
        [one.limit_name for one in counted],
        [one.route_group for one in counted],
        [one.requests for one in counted],
    )


async def list_refusals(conn: Connection, *, subject: str, since: datetime | None, limit: int) -> list[Record]:
    """The most limited first, of the last day or since the given time."""
    return await conn.fetch(
        """
        SELECT subject, limit_name, route_group, sum(requests)::bigint AS requests, min(first_at) AS first_at,
               max(last_at) AS last_at
        FROM gateway.limited_requests
        WHERE ($1 = '' OR subject = $1) AND last_at >= coalesce($2, now() - interval '1 day')
        GROUP BY subject, limit_name, route_group
        ORDER BY requests DESC, last_at DESC, subject LIMIT $3
        """,
        subject,
        since,
        limit,
    )


async def delete_old_refusals(conn: Connection) -> int:
    return await conn.execute(
        "DELETE FROM gateway.limited_requests WHERE last_at < now() - make_interval(days => $1)", KEPT_DAYS
    )

"""SQL of the audit log."""

from collections.abc import Mapping
from typing import Any

from libs.common.database import Connection
from libs.common.ids import new_id


async def insert_audit(
    conn: Connection,
    *,
    actor: str,
    action: str,
    subject: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> None:
    await conn.execute(
        """
        INSERT INTO gateway.audit_log (id, actor, action, subject, before, after, request_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        """,
        new_id(),
        actor,
        action,
        subject,
        dict(before) if before is not None else None,
        dict(after) if after is not None else None,
        request_id,
    )

"""Reads the tables after a fault and says what does not add up; nothing it says means that every promise was kept."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, LiteralString

Fetch = Callable[[LiteralString], Awaitable[list[dict[str, Any]]]]

# Each statement counts the violations of one invariant.
INVARIANTS: Final[dict[str, LiteralString]] = {
    "runs without an end": "SELECT count(*) AS n FROM agent_runs WHERE finished_at IS NULL",
    "runs told to end more than once": """
        SELECT count(*) AS n FROM (
            SELECT run_id FROM agents.run_events
            WHERE type IN ('run.succeeded', 'run.failed', 'run.cancelled', 'run.timed_out')
            GROUP BY run_id HAVING count(*) > 1
        ) AS twice
    """,
    "gaps in streams": """
        SELECT count(*) AS n FROM (
            SELECT run_id FROM agents.run_events GROUP BY run_id HAVING max(seq) <> count(*)
        ) AS gaps
    """,
    "succeeded runs that were not charged once": """
        SELECT count(*) AS n FROM (
            SELECT r.id FROM agent_runs AS r
            LEFT JOIN metering.usage_ledger AS l
                ON l.source = 'agents.run' AND l.event_id = r.id::text AND l.metric_type = 'runs'
            WHERE r.status = 'succeeded' GROUP BY r.id HAVING coalesce(sum(l.amount), 0) <> 1
        ) AS wrong
    """,
    "counters that differ from the ledger": """
        SELECT count(*) AS n FROM (
            SELECT user_id, metric_type, sum(amount) AS booked FROM metering.usage_ledger GROUP BY 1, 2
        ) AS l
        FULL JOIN (
            SELECT user_id, metric_type, sum(metric_value) AS counted FROM usage_metrics GROUP BY 1, 2
        ) AS m USING (user_id, metric_type)
        WHERE coalesce(booked, 0) <> coalesce(counted, 0)
    """,
    "holds left open": "SELECT count(*) AS n FROM metering.holds WHERE state = 'held'",
    "events not sent": """
        SELECT (SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL)
             + (SELECT count(*) FROM agents.outbox WHERE sent_at IS NULL)
             + (SELECT count(*) FROM metering.outbox WHERE sent_at IS NULL)
             + (SELECT count(*) FROM billing.outbox WHERE sent_at IS NULL) AS n
    """,
    "idempotency keys in flight": """
        SELECT count(*) AS n FROM gateway.idempotency_keys
        -- A refused request's key is given back, which is no claim: its `claimed_at` is -infinity.
        WHERE response_status IS NULL AND claimed_at < now() - interval '60 s' AND claimed_at > '-infinity'
    """,
}


async def violations(fetch: Fetch) -> dict[str, int]:
    """What is not as promised, by name, with how often; empty when all is well."""
    found = {name: int((await fetch(statement))[0]["n"]) for name, statement in INVARIANTS.items()}
    return {name: count for name, count in found.items() if count}

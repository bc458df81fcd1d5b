"""A release that is not ours yet: it grows the schema under load, and its events have fields nobody here knows."""

import asyncio
import time
from typing import Final

import asyncpg

_SENDERS: Final = ("gateway", "billing", "metering", "agents")
_GIVES_UP_AFTER_S: Final = 60.0
# The next producer, seen by this consumer: whatever is sent carries something new.
_FUNCTION: Final = """
    CREATE FUNCTION public.fault_next_producer() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN NEW.data := NEW.data || '{"not_yet_known": {"by": "the next release"}}'; RETURN NEW; END $$
"""
NEXT_RELEASE: Final = (
    "ALTER TABLE public.agent_runs ADD COLUMN fault_note text",
    "ALTER TABLE public.usage_metrics ADD COLUMN fault_note text",
    "ALTER TABLE agents.outbox ADD COLUMN fault_priority smallint NOT NULL DEFAULT 0",
    "CREATE INDEX CONCURRENTLY fault_runs_by_note ON public.agent_runs (fault_note) WHERE fault_note IS NOT NULL",
    _FUNCTION,
    *(
        f"CREATE TRIGGER fault_next_producer BEFORE INSERT ON {name}.outbox "
        "FOR EACH ROW EXECUTE FUNCTION public.fault_next_producer()"
        for name in _SENDERS
    ),
)
NEXT_RELEASE_TAKEN_BACK: Final = (
    *(f"DROP TRIGGER fault_next_producer ON {name}.outbox" for name in _SENDERS),
    "DROP FUNCTION public.fault_next_producer()",
    "DROP INDEX CONCURRENTLY public.fault_runs_by_note",
    "ALTER TABLE agents.outbox DROP COLUMN fault_priority",
    "ALTER TABLE public.usage_metrics DROP COLUMN fault_note",
    "ALTER TABLE public.agent_runs DROP COLUMN fault_note",
)


async def migrate_patiently(url: str, statement: str) -> None:
    """With the lock timeout that migrations have: what waits for a lock makes everybody behind it wait, too."""
    deadline = time.monotonic() + _GIVES_UP_AFTER_S
    while True:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SET lock_timeout = '2s'")
            await connection.execute(statement)
        except asyncpg.LockNotAvailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return
        finally:
            await connection.close()

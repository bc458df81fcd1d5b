"""Every migration goes down again, with data in its tables, and up to the very same schema."""

import asyncio
from typing import Any, Final

from ops import migrate
from tests.harness.database import TestDatabase

DATA: Final = """
INSERT INTO auth.users (id, email) VALUES ('00000000-0000-7000-8000-000000000001', 'somebody@example.com');
UPDATE user_profiles SET subscription_tier = 'pro', subscription_status = 'active';
INSERT INTO gateway.switches (name, is_on, set_by) VALUES ('maintenance', false, 'test');
INSERT INTO gateway.audit_log (id, actor, action) VALUES (public.uuid_v7(), 'test', 'tested');
INSERT INTO billing.customers (user_id, stripe_customer_id, idempotency_key)
    VALUES ('00000000-0000-7000-8000-000000000001', 'cus_1', 'key');
INSERT INTO billing.stripe_events (id, type, livemode, created, payload)
    VALUES ('evt_1', 'customer.created', false, now(), '{}');
INSERT INTO usage_metrics (user_id, metric_type, metric_value, period_start, period_end)
    VALUES ('00000000-0000-7000-8000-000000000001', 'runs', 3, date_trunc('month', now()),
        date_trunc('month', now()) + interval '1 month');
INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, kind, period_start)
    VALUES ('test', '1', '00000000-0000-7000-8000-000000000001', 'runs', 3, 'usage', date_trunc('month', now()));
INSERT INTO agent_runs (id, user_id, agent_type, task, max_output_tokens)
    VALUES ('00000000-0000-7000-8000-000000000002', '00000000-0000-7000-8000-000000000001', 'any', 'x', 10);
INSERT INTO agents.run_events (run_id, seq, type) VALUES ('00000000-0000-7000-8000-000000000002', 1, 'run.queued');
"""
# What a schema is made of, as text: columns, constraints, indexes, rights, policies, triggers, functions, views.
SCHEMA: Final = """
SELECT 'column' AS kind, format('%s.%s %s %s %s %s', table_schema, table_name, column_name, data_type, is_nullable,
    column_default) AS what FROM information_schema.columns WHERE table_schema = ANY($1)
UNION ALL
SELECT 'constraint', format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace::regnamespace::text = ANY($1)
UNION ALL SELECT 'index', indexdef FROM pg_indexes WHERE schemaname = ANY($1)
UNION ALL
SELECT 'rights', format('%s %s %s %s', oid::regclass, relacl, relrowsecurity, relforcerowsecurity) FROM pg_class
    WHERE relnamespace::regnamespace::text = ANY($1)
UNION ALL SELECT 'schema rights', format('%s %s', nspname, nspacl) FROM pg_namespace WHERE nspname = ANY($1)
UNION ALL
SELECT 'policy', format('%s.%s %s %s %s %s %s', schemaname, tablename, policyname, roles, cmd, qual, with_check)
    FROM pg_policies WHERE schemaname = ANY($1)
UNION ALL
SELECT 'trigger', pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE NOT tgisinternal AND c.relnamespace::regnamespace::text = ANY($1)
UNION ALL
SELECT 'function', pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc
    WHERE pronamespace::regnamespace::text = ANY($1)
UNION ALL SELECT 'view', definition FROM pg_views WHERE schemaname = ANY($1)
ORDER BY 1, 2
"""
WITHOUT_COLUMNS: Final = {"0007_metric_names", "0008_metric_names_seen"}  # these change constraints
OURS: Final = ["public", "auth", "gateway", "billing", "metering", "agents"]


async def schema(database: TestDatabase) -> list[tuple[str, str]]:
    rows: list[dict[str, Any]] = await database.fetch(SCHEMA, OURS)
    return [(row["kind"], row["what"]) for row in rows if "yoyo" not in row["what"]]


async def columns(database: TestDatabase) -> set[str]:
    rows = await database.fetch(
        """
        SELECT table_schema || '.' || table_name || '.' || column_name AS name
        FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
        WHERE table_schema = ANY($1) AND table_type = 'BASE TABLE'
        """,
        OURS,
    )
    return {row["name"] for row in rows if "yoyo" not in row["name"]}


async def test_every_migration_goes_down_and_up_again_with_data(test_database: TestDatabase) -> None:
    before = await schema(test_database)
    await test_database.execute(DATA)
    names = [name for name, _ in migrate.status(test_database.superuser_url)]
    left = await columns(test_database)
    for name in reversed(names):
        undone = await asyncio.to_thread(migrate.migrate_down, test_database.superuser_url, steps=1)
        assert undone == [name]
        now = await columns(test_database)
        assert now <= left, f"{name} left more columns than there were"
        assert now < left or name in WITHOUT_COLUMNS, f"{name} took nothing back"
        left = now
        if "auth.users.id" in now:  # an earlier migration's data is left alone
            assert (
                await test_database.fetchval("SELECT count(*) FROM auth.users JOIN user_profiles ON id = user_id") == 1
            )
    assert not left
    assert await asyncio.to_thread(migrate.migrate_up, test_database.superuser_url) == names
    after = await schema(test_database)
    assert set(after) - set(before) == set()
    assert set(before) - set(after) == set()


async def test_each_migration_can_be_taken_back_and_applied_again_by_itself(test_database: TestDatabase) -> None:
    """What a rollback does and a new release undoes: the last step down, the same step up, nothing else touched."""
    await test_database.execute(DATA)
    before = await schema(test_database)
    undone = await asyncio.to_thread(migrate.migrate_down, test_database.superuser_url, steps=1)
    assert await test_database.fetchval("SELECT metric_value FROM usage_metrics") == 3
    assert await asyncio.to_thread(migrate.migrate_up, test_database.superuser_url) == undone
    assert await schema(test_database) == before


async def test_rows_are_looked_at_while_others_go_on_writing(test_database: TestDatabase) -> None:
    """VALIDATE reads whole tables: in a transaction with a lock that keeps writers out they would stand for as long."""
    await test_database.execute(DATA)
    undone = await asyncio.to_thread(migrate.migrate_down, test_database.superuser_url, steps=1)
    assert undone == ["0008_metric_names_seen"]
    async with test_database.superuser.transaction():
        await test_database.execute("UPDATE usage_metrics SET held_value = 1")
        await test_database.execute(
            """
            INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, kind, period_start)
            VALUES ('test', '2', '00000000-0000-7000-8000-000000000001', 'runs', 1, 'usage', date_trunc('month', now()))
            """
        )
        assert await asyncio.to_thread(migrate.migrate_up, test_database.superuser_url) == undone
    assert await test_database.fetchval("SELECT held_value FROM usage_metrics") == 1

"""Leases take as much as was asked for, whatever plan the database chooses."""

import pytest

from libs.common.database import connect
from services.billing import erasure_queries, usage_queries, work_queries
from tests.harness.database import TestDatabase

READY = {
    "refreshes": "INSERT INTO billing.refreshes (object_id) SELECT 'sub_' || n FROM generate_series(1, 50) n",
    "erasures": "INSERT INTO billing.erasures (user_id) SELECT gen_random_uuid() FROM generate_series(1, 50)",
    "usage_reports": """
        INSERT INTO billing.usage_reports
            (hold_id, metric, user_id, stripe_customer_id, meter, identifier, value, used_at)
        SELECT gen_random_uuid(), 'tokens', gen_random_uuid(), 'cus_1', 'm', n, 1, now() FROM generate_series(1, 50) n
    """,
}
LEASES = {
    "refreshes": work_queries.lease_refreshes,
    "erasures": erasure_queries.lease_erasures,
    "usage_reports": usage_queries.lease_reports,
}


@pytest.mark.parametrize("table", list(LEASES))
async def test_a_lease_takes_no_more_than_its_limit(test_database: TestDatabase, table: str) -> None:
    await test_database.execute(READY[table])
    async with (
        connect(test_database.url("venture_billing"), application_name="test") as database,
        database.transaction() as conn,
    ):
        # The plan that runs a subquery once per row, which the planner also chooses by itself for small tables.
        await conn.execute("SET LOCAL enable_hashjoin = off")
        await conn.execute("SET LOCAL enable_mergejoin = off")
        await conn.execute("SET LOCAL enable_material = off")
        await conn.execute("SET LOCAL enable_hashagg = off")
        await conn.execute("SET LOCAL enable_sort = off")
        assert len(await LEASES[table](conn, limit=3)) == 3
        assert len(await LEASES[table](conn, limit=0)) == 0

"""What may be the name of a metric, by the tables: the same as a configuration may name."""

from typing import Any, Final

import asyncpg
import pytest
from pydantic import TypeAdapter, ValidationError

from libs.common.plans import Name
from tests.harness.database import TestDatabase

NAMES: Final = ("a", "a_1", "a" * 62, "a" * 63, "z" + "9_" * 31)
NO_NAMES: Final = (
    "",
    "a" * 64,
    "a" * 200,
    "A",
    "aB",
    "1a",
    "_a",
    "a b",
    "a-b",
    " a",
    "a ",
    "a\n",
    "\na",
    "a\nb",
    "ä",
    "aä",
)
COUNTER: Final = """
INSERT INTO usage_metrics (user_id, metric_type, period_start, period_end)
VALUES ('somebody', $1, date_trunc('month', now()), now() + interval '1 month')
"""
BOOKING: Final = """
INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, kind, period_start)
VALUES ('test', $1, 'somebody', $1, 1, 'usage', date_trunc('month', now()))
"""


@pytest.mark.parametrize("statement", [COUNTER, BOOKING], ids=["counters", "ledger"])
async def test_tables_take_the_names_that_a_configuration_may_have(test_database: TestDatabase, statement: str) -> None:
    meter: TypeAdapter[Any] = TypeAdapter(Name)
    for name in NAMES:
        assert meter.validate_python(name) == name
        await test_database.execute(statement, name)
    for name in NO_NAMES:
        with pytest.raises(ValidationError):
            meter.validate_python(name)
        with pytest.raises(asyncpg.CheckViolationError) as refusal:
            await test_database.execute(statement, name)
        assert refusal.value.constraint_name in {"usage_metrics_name", "usage_ledger_name"}


async def test_the_server_has_seen_that_all_rows_have_such_names(test_database: TestDatabase) -> None:
    """Also those of the ledger's months, and of months that are made later."""
    await test_database.fetchval("SELECT metering.make_ledger_months(now(), now() + interval '9 months')")
    checks = await test_database.fetch(
        """
        SELECT c.relname, array_agg(k.conname::text) AS names, bool_and(k.convalidated) AS are_seen
        FROM pg_class AS c JOIN pg_constraint AS k ON k.conrelid = c.oid
        WHERE c.relname ~ '^(usage_metrics|usage_ledger(_[0-9]{6})?)$' AND k.contype = 'c'
        GROUP BY c.relname
        """
    )
    assert len(checks) >= 12
    for check in checks:
        assert check["are_seen"]
        assert len([name for name in check["names"] if name.endswith("_name")]) == 1
        assert not [name for name in check["names"] if "metric_type" in name]

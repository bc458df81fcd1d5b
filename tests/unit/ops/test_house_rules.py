"""Every house rule fires on code that breaks it, and on nothing beside it."""

from pathlib import Path
from textwrap import dedent

import pytest

from ops.house_rules.__main__ import check_source
from ops.house_rules.exceptions import EXCEPTIONS
from ops.house_rules.rules import RULES
from ops.house_rules.source import Source
from ops.house_rules.sql import explained_locks_in_migration

ROOT = Path(__file__).parents[3]
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 50
LONG_MODULE = "x = 1\n" * 401
COMMENT_TOO_FAR_AWAY = '''
async def f(c):
    """Lock it."""
    await c.fetch("""
        SELECT a FROM b -- the b
        WHERE c
        FOR NO KEY UPDATE SKIP LOCKED
    """)
'''


def rules_broken(path: str, code: str) -> set[str]:
    return {finding.rule for finding in check_source(Source(path, dedent(code)))}


BROKEN = [
    ("broker-driver", "services/billing/jobs.py", "import aio_pika"),
    ("broker-driver", "libs/common/outbox.py", "from aio_pika.abc import AbstractChannel"),
    ("broker-driver", "ops/replay.py", "def f():\n    import aiormq"),
    ("stripe-sdk", "services/billing/jobs.py", "import stripe"),
    ("stripe-sdk", "services/billing/operations.py", "from stripe import Customer"),
    ("stripe-sdk", "services/billing/stripe_payments.py", "import stripe\nstripe.api_key = 'x'"),
    ("environment", "services/agents/wiring.py", "import os\nx = lambda: os.environ['A']"),
    ("environment", "libs/common/http.py", "import os\ndef f(): return os.getenv('A')"),
    ("environment", "devkit/stripe/main.py", "from os import environ"),
    ("wall-clock", "services/metering/domain.py", "from datetime import datetime\ndef f(): return datetime.now()"),
    ("wall-clock", "libs/common/ids.py", "import datetime\ndef f(): return datetime.datetime.utcnow()"),
    ("wall-clock", "services/metering/api.py", "from datetime import date\ndef f(): return date.today()"),
    ("wall-clock", "services/metering/api.py", "def f(clock=datetime.now): ..."),
    ("lost-cancellation", "libs/common/outbox.py", "async def f():\n    await asyncio.wait_for(g(), timeout=1)"),
    ("broad-except", "services/gateway/gate.py", "def f():\n    try: g()\n    except Exception: log.info('x')"),
    ("broad-except", "services/gateway/gate.py", "def f():\n    try: g()\n    except (KeyError, BaseException): pass"),
    ("broad-except", "services/gateway/gate.py", "def f():\n    try: g()\n    except: return None"),
    ("broad-except", "services/gateway/gate.py", "def f():\n    with contextlib.suppress(Exception): g()"),
    ("quiet-import", "services/gateway/api.py", "app = FastAPI()"),
    ("quiet-import", "services/gateway/api.py", "client: X = httpx.AsyncClient(timeout=5)"),
    ("quiet-import", "services/gateway/api.py", "class Routes:\n    settings = GatewaySettings()"),
    ("quiet-import", "services/gateway/api.py", "if DEBUG:\n    connections = [redis.from_url('x')]"),
    ("quiet-import", "services/gateway/api.py", "logging.basicConfig()"),
    ("quiet-import", "services/gateway/api.py", "for name in names:\n    register(name)"),
    ("quiet-import", "services/gateway/api.py", "with open('plans.toml') as file:\n    x = file.read()"),
    ("explained-locks", "services/a/queries.py", "async def f(c):\n    await c.fetch('SELECT a FROM b FOR UPDATE')"),
    ("explained-locks", "services/a/queries.py", COMMENT_TOO_FAR_AWAY),
    ("explained-locks", "libs/common/x.py", "def f(c): c.execute('INSERT INTO a ON CONFLICT (b) DO NOTHING')"),
    ("explained-locks", "ops/x.py", "def f(c): c.execute('SELECT pg_try_advisory_xact_lock(1)')"),
    ("listed-columns", "services/a/queries.py", "def f(c): return c.fetch('SELECT * FROM b')"),
    ("listed-columns", "services/a/queries.py", "def f(c): return c.fetch('SELECT DISTINCT b.* FROM b')"),
    ("listed-columns", "services/a/queries.py", "def f(c): return c.fetch('DELETE FROM b RETURNING *')"),
    ("module-size", "services/a/queries.py", LONG_MODULE),
    ("function-size", "services/a/queries.py", LONG_FUNCTION),
    ("no-patching", "tests/unit/test_a.py", "from unittest.mock import patch"),
    ("no-patching", "tests/unit/test_a.py", "from unittest import mock"),
    ("no-patching", "tests/unit/test_a.py", "def test_a(monkeypatch): monkeypatch.setattr('a.b', 1)"),
    ("no-sleep-in-tests", "tests/unit/test_a.py", "async def test_a(): await asyncio.sleep(1)"),
    ("no-sleep-in-tests", "tests/unit/test_a.py", "from time import sleep"),
]  # fmt: skip

KEPT = [
    ("libs/common/broker/consumer.py", "import aio_pika"),
    ("tests/integration/test_a.py", "import aio_pika"),
    ("services/billing/stripe_payments.py", "import stripe\ndef f(): return stripe.StripeClient('x')"),
    ("services/billing/settings.py", "import os\nx = os.environ"),
    ("services/agents/wiring.py", "import os\ndef f(): return os.getpid()"),
    ("libs/common/clock.py", "from datetime import UTC, datetime\ndef f(): return datetime.now(UTC)"),
    ("services/metering/queries.py", "def f(c): return c.fetchval('SELECT now()')"),
    ("services/gateway/gate.py", "def f():\n    try: g()\n    except Exception as e: raise Refused from e"),
    ("services/gateway/gate.py", "def f():\n    try: g()\n    except (KeyError, OSError): pass"),
    ("services/gateway/main.py", "if __name__ == '__main__':\n    main(build)"),
    ("services/gateway/api.py", "log = structlog.get_logger(__name__)\nNAME = re.compile('x')"),
    ("services/gateway/api.py", "def f(): return FastAPI()"),
    ("services/a/queries.py", 'def f(c): c.fetch("""SELECT a FROM b\n-- of two at once one waits\nFOR UPDATE""")'),
    ("services/a/queries.py", 'def f(c): c.fetch("SELECT a FROM b FOR UPDATE")  # of two at once one waits'),
    ("services/a/queries.py", 'def f(c):\n    """FOR UPDATE: one waits."""\n    c.fetch("SELECT a FOR UPDATE")'),
    ("services/a/queries.py", 'def f(c):\n    """An advisory lock."""\n    c.fetch("SELECT pg_advisory_lock(1)")'),
    ("services/a/queries.py", '"""Why SELECT * and FOR UPDATE are wrong here."""'),
    ("services/a/queries.py", "def f(c): return c.fetch('SELECT count(*), 2 * a FROM b')"),
    ("tests/integration/test_a.py", "def f(c): return c.fetch('SELECT * FROM b')"),
    ("services/a/queries.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
    ("services/a/queries.py", LONG_MODULE.removesuffix("x = 1\n")),
    ("services/a/jobs.py", "async def run(): await asyncio.sleep(1)"),
]


@pytest.mark.parametrize(("rule", "path", "code"), BROKEN)
def test_code_that_breaks_a_rule_is_found(rule: str, path: str, code: str) -> None:
    assert rules_broken(path, code) == {rule}


@pytest.mark.parametrize(("path", "code"), KEPT)
def test_code_that_keeps_the_rules_is_left_alone(path: str, code: str) -> None:
    assert rules_broken(path, code) == set()


def test_every_rule_is_shown_to_fire() -> None:
    assert {rule for rule, _, _ in BROKEN} == {getattr(rule, "__name__", "").replace("_", "-") for rule in RULES}


def test_a_lock_in_a_migration_needs_its_reason_but_a_policy_does_not() -> None:
    migration = dedent("""\
        CREATE POLICY edit ON t FOR UPDATE TO authenticated;
        -- ON CONFLICT: two triggers at once.
        INSERT INTO t ON CONFLICT DO NOTHING;
        PERFORM FROM t WHERE a FOR UPDATE;
        """)
    assert [finding.line for finding in explained_locks_in_migration("migrations/1.sql", migration)] == [4]


def test_a_finding_says_where_and_what() -> None:
    (finding,) = check_source(Source("services/a/jobs.py", "x = 1\nimport aio_pika\n"))
    assert str(finding) == "services/a/jobs.py:2: broker-driver: only libs/common/broker imports RabbitMQ's driver"


def test_exceptions_name_files_that_exist_and_give_a_reason() -> None:
    for (_, path, _), reason in EXCEPTIONS.items():
        assert (ROOT / path).is_file(), path
        assert len(reason.split()) > 3, path

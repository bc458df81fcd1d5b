"""Tenant isolation in the database itself: what the catalogue says, and what every caller gets when trying."""

# ruff: noqa: S608 - every name in a statement here comes from the catalogue or from this file

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.database import TestDatabase
from tests.security import rls
from tests.security.rls import LOGIN_ROLES, SCHEMAS, USERS_ROLES, Table

EXPECTED = Path(__file__).parent / "expected"
SERVICES = ("gateway", "billing", "metering", "agents")
# Tables that a service writes besides those of its own schema.
ALSO_WRITTEN = {
    "venture_gateway": {"auth.*", "public.user_profiles"},
    "venture_billing": set[str](),
    "venture_metering": {"public.usage_metrics"},
    "venture_agents": {
        "public.agent_runs",
        "public.background_events",
        "public.vibe_configs",
        "public.user_template_customizations",
        "public.prompt_atoms",
    },
}
IN_SCHEMAS = "n.nspname = ANY(ARRAY['auth', 'public', 'gateway', 'billing', 'metering', 'agents'])"
# The migrations' own record is the superuser's, and granted to nobody (see below).
OURS = f"{IN_SCHEMAS} AND c.relname NOT LIKE '%yoyo%'"


Compare = Callable[[str, str], None]


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """Against the reviewed file; `--rewrite-expected` takes what was found as the new one."""

    def against(name: str, found: str) -> None:
        place = EXPECTED / name
        if request.config.getoption("--rewrite-expected"):
            place.write_text(found)
        reviewed, seen = place.read_text().splitlines(), found.splitlines()
        deviations = [f"- {line}" for line in reviewed if line not in seen]
        deviations += [f"+ {line}" for line in seen if line not in reviewed]
        assert not deviations, f"{len(deviations)} deviations from {name}:\n" + "\n".join(deviations)

    return against


async def names(database: TestDatabase, sql: str, *args: Any) -> list[str]:
    return [str(row["name"]) for row in await database.fetch(sql, *args)]


# The catalogue --------------------------------------------------------------------------------------------------------


async def test_every_table_has_row_level_security_forced_and_a_policy(lasting_database: TestDatabase) -> None:
    assert not await names(
        lasting_database,
        f"""
        SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {OURS} AND c.relkind IN ('r', 'p')
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity
                   AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))
        """,
    )


async def test_everything_is_owned_by_a_role_that_cannot_log_in(lasting_database: TestDatabase) -> None:
    owners = await names(
        lasting_database,
        f"""
        SELECT DISTINCT pg_get_userbyid(owner) AS name FROM (
            SELECT c.relowner AS owner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS}
            UNION SELECT nspowner FROM pg_namespace n WHERE {IN_SCHEMAS} AND nspname <> 'public'
        ) AS everything
        """,
    )
    assert owners == ["venture_owner"]
    assert await lasting_database.fetchval("SELECT NOT rolcanlogin FROM pg_roles WHERE rolname = 'venture_owner'")


async def test_nothing_is_granted_to_everybody(lasting_database: TestDatabase) -> None:
    assert not await names(
        lasting_database,
        f"""
        SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
               LATERAL aclexplode(c.relacl) AS acl
        WHERE {IN_SCHEMAS} AND acl.grantee = 0
        """,
    )
    assert not await names(
        lasting_database,
        """
        SELECT c.relname AS name FROM pg_class c
        WHERE c.relname LIKE '%yoyo%' AND c.relkind = 'r' AND c.relacl IS NOT NULL
        """,
    )
    open_to_all = await names(
        lasting_database,
        f"""
        SELECT p.proname AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
               LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
        WHERE {IN_SCHEMAS} AND acl.grantee = 0 ORDER BY 1
        """,
    )
    assert open_to_all == ["jwt", "role", "uid", "uuid_v7"]


async def test_no_login_role_can_pass_by_row_level_security_or_become_more(lasting_database: TestDatabase) -> None:
    roles = await lasting_database.fetch(
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit FROM pg_roles "
        "WHERE rolname LIKE 'venture\\_%' OR rolname = ANY($1)",
        list(USERS_ROLES),
    )
    assert {role["rolname"] for role in roles} >= {*LOGIN_ROLES, *USERS_ROLES}
    assert not [role for role in roles if any(value for name, value in role.items() if name != "rolname")]
    memberships = await names(
        lasting_database,
        """
        SELECT pg_get_userbyid(m.member) || ' in ' || pg_get_userbyid(m.roleid) AS name FROM pg_auth_members m
        WHERE pg_get_userbyid(m.member) LIKE 'venture\\_%' OR pg_get_userbyid(m.member) = ANY($1) ORDER BY 1
        """,
        list(USERS_ROLES),
    )
    assert set(memberships) == {
        f"venture_{service} in {role}" for service in SERVICES for role in ("anon", "authenticated")
    }


async def test_views_see_what_their_reader_may_see(lasting_database: TestDatabase) -> None:
    assert not await names(
        lasting_database,
        f"""
        SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {IN_SCHEMAS} AND c.relkind IN ('v', 'm')
          AND NOT coalesce('security_invoker=true' = ANY(c.reloptions), false)
        """,
    )


async def test_functions_that_act_as_their_owner_pin_their_search_path(lasting_database: TestDatabase) -> None:
    assert not await names(
        lasting_database,
        f"""
        SELECT p.proname AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE {IN_SCHEMAS} AND p.prosecdef
          AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search\\_path=%')
        """,
    )


# Service roles --------------------------------------------------------------------------------------------------------


async def test_what_each_role_may_do_with_each_table_is_as_reviewed(
    lasting_database: TestDatabase, compare: Compare
) -> None:
    """Capital: the whole table. Small: some columns of it."""
    roles = (*USERS_ROLES, *LOGIN_ROLES)
    lines = [" ".join(["table".ljust(38), *(role.removeprefix("venture_").ljust(13) for role in roles)]).rstrip()]
    for table in await rls.read_tables(lasting_database.superuser):
        cells = [(await letters(lasting_database, table, role)).ljust(13) for role in roles]
        lines.append(" ".join([f"{table.schema}.{table.name}".ljust(38), *cells]).rstrip())
    compare("grants.txt", "\n".join(lines) + "\n")


async def letters(database: TestDatabase, table: Table, role: str) -> str:
    # A grant is worth nothing to who may not enter the schema.
    if not await database.fetchval("SELECT has_schema_privilege($1, $2, 'USAGE')", role, table.schema):
        return "-"
    found = ""
    for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"):
        if await database.fetchval("SELECT has_table_privilege($1, $2, $3)", role, table.sql, privilege):
            found += privilege[0]
        elif privilege in {"SELECT", "INSERT", "UPDATE"} and await rls.granted_columns(
            database.superuser, table, role, privilege
        ):
            found += privilege[0].lower()
    return found or "-"


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_reaches_no_table_of_another(lasting_database: TestDatabase, service: str) -> None:
    role = f"venture_{service}"
    own = ALSO_WRITTEN[role]
    tried = 0
    async with lasting_database.connect_as(role) as connection:
        for table in await rls.read_tables(lasting_database.superuser):
            if table.schema == service or {f"{table.schema}.{table.name}", f"{table.schema}.*"} & own:
                continue
            for statement in (
                f"SELECT FROM {table.sql}",
                f"INSERT INTO {table.sql} DEFAULT VALUES",
                f"DELETE FROM {table.sql}",
                f"TRUNCATE {table.sql}",
            ):
                with pytest.raises(Exception, match="permission denied"):
                    await connection.execute(statement)
                tried += 1
    assert tried > 40


# Users ----------------------------------------------------------------------------------------------------------------


async def test_every_caller_gets_from_every_table_what_was_reviewed(
    lasting_database: TestDatabase, compare: Compare
) -> None:
    superuser = lasting_database.superuser
    tables = await rls.read_tables(superuser)
    await rls.prepare(superuser, tables)
    reachable = [
        table
        for table in tables
        if [role for role in USERS_ROLES if await letters(lasting_database, table, role) != "-"]
        or table.schema == "public"
    ]
    lines: list[str] = []
    for caller in rls.CALLERS:
        for table in reachable:
            cells = [await rls.outcome(superuser, table, caller, operation) for operation in rls.OPERATIONS]
            if set(cells) != {"denied"}:
                told = ", ".join(
                    f"{op}: {cell}" for op, cell in zip(rls.OPERATIONS, cells, strict=True) if cell != "denied"
                )
                lines.append(f"{caller.name} | {table.schema}.{table.name} | {told}")
            met = {cell for cell in cells if cell in {"other's", "all"}}
            if caller.name not in {"an admin", "service_role"} and table.name != "prompt_atoms":
                assert not met, f"{caller.name} on {table.sql}: {cells}"
    total = len(rls.CALLERS) * len(reachable) * len(rls.OPERATIONS)
    head = "What is not named here is denied: permission or policy. `none`: no row is met. `row`: the new row is taken."
    body = "\n".join(f"  {line}" for line in lines)
    compare("rls_matrix.txt", f"{head}\n{total} cells: {len(reachable)} tables.\n\n{body}\n")


async def test_the_schemas_are_all_there_are(lasting_database: TestDatabase) -> None:
    found = await names(
        lasting_database,
        "SELECT nspname AS name FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'",
    )
    assert set(found) == set(SCHEMAS)

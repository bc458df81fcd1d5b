"""Row-level security as it is: who may do what with whose rows, tried out on every table that a user's role can reach.

The result is written as text and checked in; a change of it is reviewed like a change of an API:

    make test T=tests/security/test_rls.py WORKERS=0    # it differs? then, after reading how:
    make test T="tests/security/test_rls.py --rewrite-expected" WORKERS=0
"""

# ruff: noqa: S608 - every name in a statement here comes from the catalogue or from this file

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

A: Final = "aaaaaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"
B: Final = "bbbbbbbb-bbbb-7bbb-8bbb-bbbbbbbbbbbb"
ADMIN: Final = "cccccccc-cccc-7ccc-8ccc-cccccccccccc"
SCHEMAS: Final = ("auth", "public", "gateway", "billing", "metering", "agents")
USERS_ROLES: Final = ("anon", "authenticated", "service_role")
LOGIN_ROLES: Final = ("venture_gateway", "venture_billing", "venture_metering", "venture_agents", "venture_operator")
OPERATIONS: Final = ("select", "insert own", "insert other's", "update", "give away", "delete")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    name: str
    role: str
    claims: str | None
    """None: never set in this session."""


def _claims(**claims: Any) -> str:
    return json.dumps({"role": "authenticated", **claims})


# No claims comes first: once a session has had them, the setting is '' ever after.
CALLERS: Final = (
    Caller(name="no claims", role="authenticated", claims=None),
    Caller(name="empty claims", role="authenticated", claims=""),
    Caller(name="claims {}", role="authenticated", claims="{}"),
    Caller(name="claims []", role="authenticated", claims="[]"),
    Caller(name="claims no JSON", role="authenticated", claims='{"sub": "'),
    Caller(name="sub null", role="authenticated", claims=_claims(sub=None)),
    Caller(name="sub a number", role="authenticated", claims=_claims(sub=7)),
    Caller(name="sub a list", role="authenticated", claims=_claims(sub=[A])),
    Caller(name="sub no uuid", role="authenticated", claims=_claims(sub="' OR true --")),
    Caller(name="anon", role="anon", claims=json.dumps({"role": "anon"})),
    Caller(name="anon with A's sub", role="anon", claims=_claims(sub=A)),
    Caller(name="A", role="authenticated", claims=_claims(sub=A)),
    Caller(name="A in capitals", role="authenticated", claims=_claims(sub=A.upper())),
    Caller(name="A as service_role", role="authenticated", claims=_claims(sub=A, role="service_role")),
    Caller(
        name="A with forged rights",
        role="authenticated",
        claims=_claims(sub=A, app_metadata={"role": "admin"}, premium_features={"admin": True}, is_admin=True),
    ),
    Caller(name="an admin", role="authenticated", claims=_claims(sub=ADMIN)),
    Caller(name="service_role", role="service_role", claims=json.dumps({"role": "service_role"})),
)

# Runs one statement as the caller and says whose rows it met; whatever it did is undone.
_ATTEMPT: Final = """
CREATE FUNCTION pg_temp.attempt(caller text, claims text, statement text, probe text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    touched text;
BEGIN
    BEGIN
        IF claims IS NOT NULL THEN
            PERFORM set_config('request.jwt.claims', claims, true);
        END IF;
        PERFORM set_config('role', caller, true);
        IF probe IS NULL THEN
            EXECUTE statement INTO touched;
        ELSE
            EXECUTE statement;
            PERFORM set_config('role', 'none', true);
            EXECUTE probe INTO touched;
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'ZZ001', MESSAGE = coalesce(touched, '');
    EXCEPTION
        WHEN SQLSTATE 'ZZ001' THEN RETURN SQLERRM;
        WHEN insufficient_privilege THEN RETURN 'denied';
        WHEN unique_violation THEN RETURN 'row';  -- no policy was in the way, only the row that is there already
        WHEN OTHERS THEN RETURN 'error ' || SQLSTATE;
    END;
END
$$
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    schema: str
    name: str
    columns: dict[str, str]
    """Type by name, in order."""
    owner_column: str

    @property
    def sql(self) -> str:
        return f'{self.schema}."{self.name}"'

    def literal(self, column: str, person: str, *, fresh: bool = False) -> str:
        """A value of A's row, of B's, or of a new one; a person's rows in all tables point at each other."""
        kind, digit = self.columns[column], str({"A": 1, "B": 2, "admin": 3}[person] + fresh * 3)
        if column in {self.owner_column, "user_id"} and kind in {"uuid", "text", "bytea"}:
            return f"'{_id(person)}'"
        row = _id(person) if not fresh else _id(person).replace("7", "9")
        by_type = {
            "uuid": f"'{row}'",
            "text": f"'{row}'",
            "jsonb": "'{}'",
            "boolean": "true",
            "bytea": f"'{row}'::bytea",
            "date": f"'2026-01-0{digit}'",
            "timestamp with time zone": f"date_trunc('month', now()) + interval '{digit} days'",
        }
        return by_type.get(kind, "'{}'" if kind.endswith("[]") else digit)


def _id(person: str) -> str:
    return {"A": A, "B": B, "admin": ADMIN}[person]


def _sql_in(values: Sequence[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


async def read_tables(superuser: "asyncpg.Connection[Any]") -> list[Table]:
    rows = await superuser.fetch(
        f"""
        SELECT n.nspname AS schema, c.relname AS name, a.attname AS column,
               format_type(a.atttypid, a.atttypmod) AS type,
               coalesce(a.attnum = ANY(i.indkey), false) AS is_key
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
        WHERE c.relkind IN ('r', 'p') AND n.nspname IN ({_sql_in(SCHEMAS)})
          AND NOT c.relispartition  -- their names go with the months; rights on them are none but the operator's
          AND c.relname NOT LIKE '%yoyo%'  -- the migrations' own record, the superuser's
        ORDER BY 1, 2, a.attnum
        """
    )
    columns: dict[tuple[str, str], dict[str, str]] = {}
    keys: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        place = (row["schema"], row["name"])
        columns.setdefault(place, {})[row["column"]] = row["type"]
        if row["is_key"]:
            keys.setdefault(place, []).append(row["column"])
    return [
        Table(
            schema=schema,
            name=name,
            columns=found,
            owner_column="user_id" if "user_id" in found else keys.get((schema, name), [next(iter(found))])[0],
        )
        for (schema, name), found in columns.items()
    ]


async def prepare(superuser: "asyncpg.Connection[Any]", tables: Sequence[Table]) -> None:
    """One row of A's and one of B's in every table. Grants and policies stay; what else guards a row is taken off."""
    for relation in await superuser.fetch(
        f"""
        SELECT conrelid::regclass::text AS name, conname FROM pg_constraint
        WHERE contype IN ('f', 'c') AND connamespace::regnamespace::text IN ({_sql_in(SCHEMAS)})
        ORDER BY coninhcount  -- a partition's own goes with its parent's
        """
    ):
        await superuser.execute(f'ALTER TABLE {relation["name"]} DROP CONSTRAINT IF EXISTS "{relation["conname"]}"')
    for column in await superuser.fetch(
        f"""
        SELECT c.oid::regclass::text AS name, a.attname AS column
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
        WHERE c.relnamespace::regnamespace::text IN ({_sql_in(SCHEMAS)})
          AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0
          AND a.attnotnull AND NOT coalesce(a.attnum = ANY(i.indkey), false)
        """
    ):
        await superuser.execute(f'ALTER TABLE {column["name"]} ALTER COLUMN "{column["column"]}" DROP NOT NULL')
    partitions = await superuser.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class WHERE relispartition AND relkind = 'r'"
    )
    for partition in partitions:
        await superuser.execute(f"ALTER TABLE {partition['name']} DISABLE TRIGGER ALL")
    for table in tables:
        await superuser.execute(f"ALTER TABLE {table.sql} DISABLE TRIGGER ALL")
        await superuser.execute(f"TRUNCATE {table.sql} CASCADE")
    for table in tables:
        for person in ("A", "B"):
            await superuser.execute(_insert(table, list(table.columns), person, fresh=False))
    features = "'{\"admin\": true}'"
    await superuser.execute(
        f"INSERT INTO public.user_profiles (user_id, premium_features) VALUES ('{ADMIN}', {features})"
    )
    await superuser.execute(_ATTEMPT)


def _insert(table: Table, columns: Sequence[str], person: str, *, fresh: bool) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    values = ", ".join(table.literal(column, person, fresh=fresh) for column in columns)
    return f"INSERT INTO {table.sql} ({names}) VALUES ({values})"


async def granted_columns(superuser: "asyncpg.Connection[Any]", table: Table, role: str, privilege: str) -> list[str]:
    rows = await superuser.fetch(
        "SELECT c FROM unnest($3::text[]) AS c WHERE has_column_privilege($1, $2, c, $4)",
        role,
        table.sql,
        list(table.columns),
        privilege,
    )
    return [row["c"] for row in rows]


async def outcome(superuser: "asyncpg.Connection[Any]", table: Table, caller: Caller, operation: str) -> str:
    """`denied`, an error's code, or whose rows it met: `none`, `own`, `other's`, `all`."""
    statement, probe = await _attempt(superuser, table, caller.role, operation)
    met = await superuser.fetchval(
        "SELECT pg_temp.attempt($1, $2, $3, $4)", caller.role, caller.claims, statement, probe
    )
    if met == "denied" or met.startswith("error"):
        return met
    if operation.startswith("insert"):
        return "row"
    people = {person for person, theirs in (("A", A), ("B", B)) if theirs in met.lower()}
    return {0: "none", 2: "all"}.get(len(people), "own" if people == {"A"} else "other's")


async def _attempt(
    superuser: "asyncpg.Connection[Any]", table: Table, role: str, operation: str
) -> tuple[str, str | None]:
    owner = f'"{table.owner_column}"'
    whose = f"SELECT string_agg(DISTINCT {owner}::text, ',') FROM {table.sql}"
    if operation == "select":
        readable = await granted_columns(superuser, table, role, "SELECT")
        seen = table.owner_column if table.owner_column in readable or not readable else readable[0]
        return f"SELECT string_agg(DISTINCT \"{seen}\"::text, ',') FROM {table.sql}", None
    if operation.startswith("insert"):
        columns = await granted_columns(superuser, table, role, "INSERT") or list(table.columns)
        person = "A" if operation == "insert own" else "B"
        return _insert(table, columns, person, fresh=True), "SELECT 'row'"
    still_there = (
        f"SELECT encode({owner}, 'escape')" if table.columns[table.owner_column] == "bytea" else f"SELECT {owner}::text"
    )
    gone = f"""
        SELECT string_agg(id, ',') FROM unnest(ARRAY['{A}', '{B}']) AS id
        WHERE id NOT IN ({still_there} FROM {table.sql})
    """
    if operation == "delete":
        return f"DELETE FROM {table.sql}", gone
    writable = await granted_columns(superuser, table, role, "UPDATE")
    if operation == "give away":
        return f"UPDATE {table.sql} SET {owner} = {table.literal(table.owner_column, 'admin')}", gone
    free = [column for column in writable if column not in {table.owner_column, "id"}]
    column = free[-1] if free else list(table.columns)[-1]
    changed = f'{whose} WHERE "{column}" IS NULL'
    return f'UPDATE {table.sql} SET "{column}" = NULL', changed

"""Canaries: secrets and personal text sent down every path, looked for in everything that is written down.

Also here, because it is read in the same places: what is logged of an attack, that no input can forge a line of it,
and that errors tell their reader nothing but an id to ask for.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Generator
from typing import Any
from uuid import uuid4

import httpx
import pydantic_ai.models
import pytest
import redis.asyncio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request

from libs.common import database as db
from libs.common.events.gateway import RunRequested
from libs.common.http import Edge, create_app
from libs.common.ids import new_id
from libs.common.logs import describe_error
from services.gateway.mail.jobs import MailSender
from tests.harness.database import TestDatabase
from tests.harness.house import House, open_house
from tests.harness.services import Place
from tests.harness.talk import Talk, listening
from tests.security.canaries import (
    EMAIL,
    MODEL,
    PASSWORD,
    PERSONAL,
    PROVIDER,
    STRIPE,
    Walk,
    park,
    refusing_provider,
    walk,
)


@pytest.fixture(scope="module")
def talk() -> Generator[Talk, None, None]:
    with listening() as heard:
        yield heard


@pytest.fixture(scope="module")
async def house(lasting_place: Place, talk: Talk, span_exporter: InMemorySpanExporter) -> AsyncGenerator[House, None]:
    async with refusing_provider() as provider:
        models = {"openai_api_key": PROVIDER, "openai_base_url": provider, "agents_models": MODEL}
        with pydantic_ai.models.override_allow_model_requests(True):  # noqa: FBT003 - their signature
            async with open_house(lasting_place, agents_overrides=models) as opened:
                yield opened


@pytest.fixture(scope="module")
async def trail(house: House) -> Walk:
    return await walk(house)


@pytest.fixture(scope="module")
async def parked(house: House, trail: Walk) -> list[dict[str, Any]]:
    return await park(house)


async def everything(database: TestDatabase, *, but: str = "") -> dict[str, str]:
    tables = await database.fetch(
        """
        SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
        WHERE schemaname IN ('auth', 'public', 'gateway', 'billing', 'metering', 'agents')
        """
    )
    return {
        table["name"]: str(await database.fetchval(f"SELECT string_agg(t::text, ' ') FROM {table['name']} AS t"))  # noqa: S608
        for table in tables
        if table["name"] not in but
    }


# Where canaries must not be -------------------------------------------------------------------------------------------


async def test_no_log_line_holds_a_secret_or_what_somebody_wrote(talk: Talk, trail: Walk, parked: Any) -> None:
    assert len(talk.lines()) > 60
    assert not trail.hits(talk.text)


async def test_no_trace_holds_one(span_exporter: InMemorySpanExporter, trail: Walk, parked: Any) -> None:
    spans = span_exporter.get_finished_spans()
    assert len(spans) > 60
    assert not trail.hits("\n".join(span.to_json() for span in spans))


async def test_no_parked_message_explains_itself_with_its_content(trail: Walk, parked: list[dict[str, Any]]) -> None:
    assert all(headers["x-parked-reason"] for headers in parked)
    assert not trail.hits(json.dumps(parked, default=str))


async def test_no_event_holds_one_but_the_run_that_is_asked_for(house: House, trail: Walk) -> None:
    for service in ("gateway", "billing", "metering", "agents"):
        rows = await house.place.database.fetch(f"SELECT type, data::text AS data FROM {service}.outbox")  # noqa: S608
        for row in rows:
            # The task travels to who is to do it, in the one event that asks for it.
            assert not trail.hits(row["data"], personal=row["type"] != RunRequested.type), row["type"]


async def test_no_secret_lies_in_any_table(house: House, trail: Walk) -> None:
    """Passwords, tokens and keys as hashes alone. A letter holds its link until the mail server has it; the schemes of
    webhooks need the secret itself."""
    for name, text in (await everything(house.place.database)).items():
        allowed = {"gateway.mails": {"reset token", "reset code"}, "agents.webhook_endpoints": {"webhook secret"}}
        assert set(trail.hits(text, personal=False)) <= allowed.get(name, set()), name


async def test_no_refusal_repeats_what_was_sent(trail: Walk) -> None:
    refusals = [answer for answer in trail.answers if answer.status_code >= 400]
    assert len(refusals) >= 20
    runs = [answer for answer in trail.answers if MODEL in answer.text]
    assert runs
    assert not trail.hits("".join(answer.text for answer in runs), personal=False)
    for answer in refusals:
        assert not trail.hits(answer.text + str(answer.headers)), f"{answer.request.url.path}: {answer.text}"
    broken = {answer.request.url.path for answer in trail.answers if answer.status_code >= 500}
    assert broken == {"/billing/webhook"}  # this house has no Stripe: 503


async def test_a_password_is_kept_as_argon2id_of_at_least_owasps_strength(house: House, trail: Walk) -> None:
    stored = await house.place.database.fetchval("SELECT encrypted_password FROM auth.users WHERE email = $1", EMAIL)
    match = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$\S+", stored)
    assert match is not None
    memory, passes, lanes = map(int, match.groups())
    assert (memory >= 19_456, passes >= 2, lanes >= 1) == (True, True, True)


# Unexpected errors ----------------------------------------------------------------------------------------------------


async def test_an_unexpected_error_tells_its_reader_an_id_and_its_log_a_place(talk: Talk) -> None:
    app = create_app(title="test", version="1")

    async def fail(_request: Request) -> None:
        try:
            int(PERSONAL)
        except ValueError as error:
            raise RuntimeError(f"{STRIPE} SELECT 1; /srv/secret.py {EMAIL}") from error

    app.add_api_route("/fail", fail)
    before = len(talk.lines())
    transport = httpx.ASGITransport(app=Edge(app, service="test"), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/fail")
    assert answer.status_code == 500
    assert set(answer.json()) == {"type", "title", "status", "code", "detail", "trace_id"}
    assert not re.search(r"\w+Error|Traceback|SELECT|\.py|canary|\d+\.\d+\.\d+", answer.text)
    logged = [line for line in talk.lines()[before:] if line["event"] == "request_failed"]
    assert "RuntimeError" in logged[0]["exception"]
    assert "ValueError" in logged[0]["exception"]
    assert "test_leaks.py" in logged[0]["exception"]
    for canary in (PERSONAL, STRIPE, EMAIL):
        assert canary not in json.dumps(logged)


async def test_what_the_database_says_of_an_error_is_not_repeated(test_database: TestDatabase) -> None:
    """`DETAIL: Key (email)=(...) already exists` names a person."""
    insert = "INSERT INTO auth.users (id, email) VALUES ($1, $2)"
    await test_database.execute(insert, new_id(), EMAIL)
    with pytest.raises(Exception, match="already exists") as caught:
        await test_database.execute(insert, new_id(), EMAIL)
    described = describe_error(caught.value)
    assert "UniqueViolationError" in described
    assert EMAIL not in described


async def test_every_refusal_has_the_one_shape(trail: Walk) -> None:
    seen = 0
    for answer in trail.answers:
        if answer.status_code >= 400 and not answer.request.url.path.startswith("/auth/v1"):
            assert answer.headers["content-type"] == "application/problem+json"
            assert set(answer.json()) >= {"type", "title", "status", "code", "detail", "trace_id"}
            seen += 1
        elif answer.status_code >= 400:
            assert (
                set(answer.json()) >= {"code", "msg"}
                or set(answer.json()) >= {"error_code", "msg"}
                or "message" in answer.json()
            )
    assert seen >= 8


# What is told of an attack --------------------------------------------------------------------------------------------


async def test_security_events_are_told_with_whom_they_concern(house: House, talk: Talk, trail: Walk) -> None:
    user_id = await house.place.database.fetchval("SELECT id::text FROM auth.users WHERE email = $1", EMAIL)
    assert talk.said("signed_in", user_id=user_id)
    assert talk.said("sign_in_refused", reason="wrong_credentials", user_id=user_id)
    assert talk.said("sign_in_refused", reason="wrong_credentials", user_id=None)
    kinds = [line.get("kind") for line in talk.said("webhook_signature_refused")]
    assert "gitlab" in kinds


async def test_a_reused_refresh_token_leaves_a_row_that_nobody_can_change(house: House, trail: Walk) -> None:
    user_id = await house.place.database.fetchval("SELECT id::text FROM auth.users WHERE email = $1", EMAIL)
    rows = await house.place.database.fetch("SELECT action FROM gateway.audit_log WHERE subject = $1", user_id)
    assert "refresh_token_reused" in {row["action"] for row in rows}
    for role in ("venture_gateway", "venture_operator"):
        async with house.place.database.connect_as(role) as connection:
            for statement in ("UPDATE gateway.audit_log SET actor = 'x'", "DELETE FROM gateway.audit_log"):
                with pytest.raises(Exception, match="permission denied"):
                    await connection.execute(statement)


async def test_a_refusal_by_the_database_itself_is_told(house: House, talk: Talk) -> None:
    claims = {"sub": str(new_id()), "role": "authenticated"}
    async with db.connect(house.place.database.url("venture_agents"), application_name="test") as database:
        with pytest.raises(Exception, match="permission denied"):
            async with database.transaction_as(claims) as conn:
                await conn.execute("DELETE FROM public.agent_runs")
    assert talk.said("database_refused_access")


# Forging lines, keys and headers --------------------------------------------------------------------------------------


async def test_no_input_forges_a_line_of_the_log(house: House, talk: Talk) -> None:
    """Raw, because no client library would send it."""
    forged = '{"event":"forged","level":"info"}'
    port = int(house.gateway.base_url.rpartition(":")[2])
    for line in (
        f"GET /v1/runs/%0a{forged} HTTP/1.1\r\nHost: x",
        f"GET /%1b[31m%0d%0a{forged} HTTP/1.1\r\nHost: x\r\nUser-Agent: \x1b[2J{forged}",
        f"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-ID: a%0a{forged}",
        f"GET /health HTTP/1.1\r\nHost: x\r\ntraceparent: 00-{forged}-01\r\nX-Forwarded-For: {forged}",
        f"GET /health HTTP/1.1\r\nHost: {forged}\r\nReferer: \t{forged}",
        f"POST /auth/v1/token?grant_type=%0a{forged} HTTP/1.1\r\nHost: x\r\nContent-Length: 0",
        f"POST /webhooks/gitlab/{uuid4()} HTTP/1.1\r\nHost: x\r\nX-Gitlab-Event: {forged}\r\nContent-Length: 0",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{line}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        async with asyncio.timeout(5):
            await reader.read(65_536)
        writer.close()
    assert not [line for line in talk.lines() if line["event"] == "forged"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", talk.text)


async def test_a_key_in_redis_is_ours_whatever_came_in(house: House, trail: Walk) -> None:
    looking = redis.asyncio.Redis.from_url(house.place.redis_url)  # pyright: ignore[reportUnknownMemberType]
    async with looking.monitor() as monitor, httpx.AsyncClient(base_url=house.gateway.base_url) as client:
        for value in ("1.2.3.4\r\nFLUSHALL", "*", "rl:general:x", "\\xff", "a" * 2_000, "{x}:{y}"):
            await client.get("/v1/billing/plans", headers={"X-Forwarded-For": value.replace("\r\n", " ")})
            await client.get("/v1/profile", headers={"Authorization": f"Bearer {value!r}"})
        seen: list[str] = []
        while not any("evalsha" in command.lower() for command in seen[-3:]) or len(seen) < 12:
            async with asyncio.timeout(5):
                seen.append((await monitor.next_command())["command"])
    await looking.aclose()
    keys = {key for command in seen for key in re.findall(r"\brl:\S+", command)}
    assert keys
    assert not [key for key in keys if not re.fullmatch(r"rl:[a-z-]{1,40}:[0-9a-f]{32}", key)]
    assert not re.search(r"(?i)flushall|aaaa|1\.2\.3\.4", " ".join(seen))


@pytest.mark.parametrize(
    "address",
    [
        "a@b.co\r\nBcc: x@y.zz", "a@b.co\nBcc: x@y.zz", "a@b.co,x@y.zz", "a@b.co;x@y.zz", "a@b.co x@y.zz", "<a@b.co>",
        "A B <a@b.co>", "a@b.co\u0000", "a@b.co\u2028x", "a%0d%0aBcc:x@b.co\r\n", '"a\r\nBcc: x@y.zz"@b.co', "a@b@c.co",
        "@b.co", "a@",
    ],
)  # fmt: skip
async def test_an_address_carries_nothing_but_itself(house: House, address: str) -> None:
    for path, body in (
        ("/auth/v1/signup", {"email": address, "password": PASSWORD}),
        ("/auth/v1/recover", {"email": address}),
        ("/auth/v1/otp", {"email": address}),
    ):
        answer = await house.gateway.client.post(path, json=body, headers=house.anon_headers())
        assert answer.status_code in {400, 422}, f"{path}: {answer.status_code} {answer.text}"
    sent = await house.place.database.fetch("SELECT address FROM gateway.mails")
    assert not [row for row in sent if re.search(r"[\s,;<>]|x@y", row["address"])]


async def test_a_letter_with_such_an_address_is_not_written(house: House) -> None:
    """The net below: a line break in a header raises in the composing, it is never sent."""
    sender = MailSender(None, smtp_url="smtp://127.0.0.1:1", mail_from="Us <no-reply@localhost>")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"linefeed|newline"):
        sender.compose("a@b.co\r\nBcc: x@y.zz", "recovery", {"code": "1", "link": "https://x"})


async def test_markup_in_a_letter_stays_text(house: House) -> None:
    sender = MailSender(None, smtp_url="smtp://127.0.0.1:1", mail_from="Us <no-reply@localhost>")  # pyright: ignore[reportArgumentType]
    link = 'https://x/"><script>alert(1)</script>{{7*7}}'
    written = sender.compose("a@b.co", "recovery", {"code": "{{7*7}}", "link": link})
    html = written.get_body(("html",))
    assert html is not None
    assert "<script>" not in html.get_content()
    assert "49" not in html.get_content()

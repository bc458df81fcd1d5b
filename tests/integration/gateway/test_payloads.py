"""The attack lists of tokens, headers, hosts, bodies and SQL: each is refused, none is a crash, and nothing changes."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from services.gateway.auth.tokens import new_signing_key
from services.gateway.settings import Settings
from tests.harness.services import Place, RunningService
from tests.integration.gateway.conftest import SignedIn

Claims = dict[str, Any]
FOREIGN: Final = "01a20000-0000-7000-8000-000000000000"

# What is signed with the right key, and is still no access token of a user.
CLAIMS: Final[Mapping[str, Callable[[Claims], Claims]]] = {
    "issuer with more behind": lambda c: {**c, "iss": c["iss"] + ".evil.example"},
    "issuer's beginning": lambda c: {**c, "iss": c["iss"][:-1]},
    "no issuer": lambda c: _without(c, "iss"),
    "no audience": lambda c: _without(c, "aud"),
    "a list of audiences": lambda c: {**c, "aud": ["authenticated", "other"]},
    "another audience": lambda c: {**c, "aud": "other"},
    "no expiry": lambda c: _without(c, "exp"),
    "expiry as text": lambda c: {**c, "exp": "tomorrow"},
    "expiry that is no number": lambda c: {**c, "exp": float("nan")},
    "expired": lambda c: {**c, "exp": int(time.time()) - 1},
    "not valid yet": lambda c: {**c, "nbf": int(time.time()) + 600},
    "issued in the future": lambda c: {**c, "iat": int(time.time()) + 600},
    "no subject": lambda c: _without(c, "sub"),
    "subject is a number": lambda c: {**c, "sub": 7},
    "subject is no id": lambda c: {**c, "sub": "' OR 1=1--"},
    "an account that never was": lambda c: {**c, "sub": FOREIGN},
    "role of the service": lambda c: {**c, "role": "service_role"},
    "no role": lambda c: _without(c, "role"),
}
# What is signed otherwise, or says so.
HEADERS: Final[tuple[Mapping[str, Any], ...]] = (
    {"kid": "../../dev/null"},
    {"kid": "x' UNION SELECT 'k"},
    {"kid": ""},
    {"kid": "another"},
    {"kid": "another", "jku": "https://evil.example/jwks.json"},
    {"kid": "another", "x5u": "https://evil.example/cert.pem"},
)
POST: Final = "POST /auth/v1/token HTTP/1.1\r\nHost: a\r\n"
SQL: Final = (
    "' OR 1=1--",
    "'; select pg_sleep(3)--",
    "$$;reset role;$$",
    "');set role postgres;--",
    "' and (select set_config('request.jwt.claims','{\"sub\":\"B\"}',true)) is not null--",
    "%27",
    "\\u0027",
    '{"$gt":""}',
    "a'||(select version())||'",
    "{{7*7}}${7*7}",
)


def _without(claims: Claims, name: str) -> Claims:
    return {key: value for key, value in claims.items() if key != name}


def _key(settings: Settings) -> Any:
    if settings.auth_signing_keys is None:
        raise AssertionError("these settings have keys of their own")
    return PyJWK({**json.loads(settings.auth_signing_keys.get_secret_value())[0], "alg": "ES256"}).key


async def _status(user: SignedIn, token: str) -> int:
    return (await user.client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})).status_code


async def test_a_token_with_any_claim_amiss_opens_nothing(user: SignedIn, settings: Settings) -> None:
    claims: Claims = jwt.decode(user.session["access_token"], options={"verify_signature": False})
    key, header = _key(settings), {"kid": "test-key"}
    assert await _status(user, jwt.encode(claims, key, algorithm="ES256", headers=header)) == 200
    for name, change in CLAIMS.items():
        token = jwt.encode(change(claims), key, algorithm="ES256", headers=header)
        assert await _status(user, token) == 401, name


async def test_a_token_signed_by_another_key_opens_nothing_whatever_its_header_says(
    user: SignedIn, settings: Settings
) -> None:
    claims: Claims = jwt.decode(user.session["access_token"], options={"verify_signature": False})
    foreign = new_signing_key("test-key")
    foreign_key = PyJWK({**foreign, "alg": "ES256"}).key
    public = {name: value for name, value in foreign.items() if name != "d"}
    for header in (
        *HEADERS,
        {"kid": "test-key"},
        {"kid": "test-key", "jwk": public},
        {"kid": "test-key", "crit": ["x"]},
    ):
        token = jwt.encode(claims, foreign_key, algorithm="ES256", headers=dict(header))
        assert await _status(user, token) == 401, header
    # The public key as the secret of a symmetric signature: the key decides the algorithm, not the token.
    pem = _key(settings).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for algorithm in ("HS256", "none", "nOnE"):
        head = _b64(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "test-key"}).encode())
        signed = f"{head}.{_b64(json.dumps(claims).encode())}"
        signature = hmac.new(pem, signed.encode(), hashlib.sha256).digest()
        assert await _status(user, f"{signed}.{_b64(signature)}") == 401, algorithm


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


async def test_a_token_is_read_from_one_header_and_nowhere_else(user: SignedIn, anon: httpx.AsyncClient) -> None:
    token = user.session["access_token"]
    assert (await anon.get(f"/v1/profile?access_token={token}")).status_code == 401
    assert (await anon.get("/v1/profile", headers={"Cookie": f"access_token={token}"})).status_code == 401
    assert (await anon.get("/v1/profile", headers={"Authorization": f"Basic {token}"})).status_code == 401
    assert (await anon.get("/v1/profile", headers={"X-Authorization": f"Bearer {token}"})).status_code == 401


async def test_sql_in_any_text_is_text(user: SignedIn, anon: httpx.AsyncClient, place: Place) -> None:
    apikey = {"apikey": anon.headers["apikey"]}
    for text in SQL:
        started = time.monotonic()
        answers = [
            await user.client.patch("/v1/profile", json={"name": text, "company_context": text}),
            await user.client.patch("/v1/profile", json={text: text}),
            await user.client.get("/v1/api-keys", params={"cursor": text}),
            await user.client.delete(f"/v1/api-keys/{text.replace('/', '')}"),
            await user.client.post(
                "/v1/api-keys", json={"name": text}, headers={"Idempotency-Key": text.replace(" ", "")}
            ),
            await user.client.put("/auth/v1/user", json={"data": {text: text}}, headers=apikey),
            await anon.get("/v1/profile", headers={"Authorization": f"Bearer {text}"}),
            await anon.get("/v1/profile", headers={"Authorization": f"Bearer vc_{text}"}),
            await anon.get("/auth/v1/settings", headers={"apikey": text}),
            await anon.post("/auth/v1/token?grant_type=password", json={"email": text, "password": text}),
            await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": text}),
            await anon.post("/auth/v1/verify", json={"type": text, "token_hash": text}),
            await anon.get("/auth/v1/verify", params={"type": "signup", "token": text, "redirect_to": text}),
        ]
        assert all(answer.status_code < 500 for answer in answers), [answer.status_code for answer in answers]
        assert time.monotonic() - started < 2.5, text
        profile = (await user.client.get("/v1/profile")).json()
        assert profile["name"] == text
        assert profile["email"] == user.email
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 1


async def test_metadata_that_no_table_could_hold_is_refused(user: SignedIn, anon: httpx.AsyncClient) -> None:
    apikey = {"apikey": anon.headers["apikey"], "x-supabase-api-version": "2024-01-01"}
    for data in ({"n": 2**70}, {"text": "a\x00b"}, {"deep": json.loads("[" * 300 + "]" * 300)}):
        body = {"email": "bob@example.com", "password": "correct horse", "data": data}
        for answer in (
            await anon.post("/auth/v1/signup", json=body),
            await user.client.put("/auth/v1/user", json={"data": data}, headers=apikey),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed")


async def test_links_in_mails_lead_where_the_configuration_says(
    anon: httpx.AsyncClient, user: SignedIn, place: Place, settings: Settings
) -> None:
    sly = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "javascript",
        "Referer": "https://evil.example/",
        "Origin": "https://evil.example",
    }
    answer = await anon.post(
        "/auth/v1/recover?redirect_to=https://evil.example", json={"email": user.email}, headers=sly
    )
    assert answer.status_code == 200
    (mail,) = await place.database.fetch(
        "SELECT content ->> 'link' AS link FROM gateway.mails WHERE letter = 'recovery'"
    )
    assert mail["link"].startswith(settings.next_public_supabase_url)
    assert "evil" not in mail["link"]


async def test_a_poisoned_host_or_path_reaches_no_other_route(gateway: RunningService) -> None:
    port = urlsplit(gateway.base_url).port or 0
    for target, host in (
        ("/internal/usage", "svc/#@evil"),
        ("/internal/usage", "localhost:4000/?x="),
        ("/v1/profile", "evil.example/health?x="),
        ("@google.com/health", "localhost"),
        ("http://evil.example/internal/usage", "localhost"),
        ("/health/../internal/usage", "localhost"),
        ("/health%2f..%2finternal/usage", "localhost"),
    ):
        status = await _raw(port, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert status in {400, 401, 404}, (target, host, status)


async def test_a_path_with_a_line_break_is_refused_in_the_shape_of_where_it_leads(anon: httpx.AsyncClient) -> None:
    sign_in = await anon.get("/auth/v1/us%0Aer")
    assert (sign_in.status_code, sign_in.headers["content-type"]) == (404, "application/json")
    assert sign_in.json().keys() == {"code", "message"}
    ours = await anon.get("/v1/pro%0Afile")
    assert (ours.status_code, ours.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("request_text", "statuses"),
    [
        (
            POST + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            {400},
        ),
        ("POST /auth/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", {400}),
        ("POST /auth/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", {400, 413}),
        ("POST /auth/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", {400}),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + "a" * 70_000 + "\r\n\r\n", {200, 400, 431}),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\n" + "".join(f"X-{n}: 1\r\n" for n in range(1000)) + "\r\n",
            {200, 400, 431},
        ),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX-Request-ID: a\r\n b\r\n\r\n", {200, 400}),
        ("GET /health HTTP/1.1\r\nHost: a\r\nX-Bad\x01: 1\r\n\r\n", {400}),
        ("TRACE /health HTTP/1.1\r\nHost: a\r\n\r\n", {400, 405}),
        ("GET /health HTTP/9.9\r\nHost: a\r\n\r\n", {400}),
    ],
    ids=[
        "both lengths",
        "negative",
        "too long",
        "two lengths",
        "64 kB",
        "1,000",
        "folded",
        "control",
        "trace",
        "version",
    ],
)
async def test_a_request_out_of_form_is_refused_at_the_door(
    gateway: RunningService, request_text: str, statuses: set[int]
) -> None:
    port = urlsplit(gateway.base_url).port or 0
    assert await _raw(port, request_text) in statuses
    assert (await gateway.client.get("/health")).status_code == 200


async def test_mail_headers_and_long_addresses_are_refused_at_once(anon: httpx.AsyncClient) -> None:
    for email in ("a@b.c\r\nBcc: x@y.z", "a" * 900 + "@example.com", "a@" + "b" * 300 + ".com", "@", "a@b"):
        started = time.monotonic()
        answer = await anon.post("/auth/v1/signup", json={"email": email, "password": "correct horse"})
        assert (answer.status_code, answer.json()["code"]) == (400, "validation_failed"), email[:40]
        assert time.monotonic() - started < 0.5
    long = await anon.post("/auth/v1/signup", json={"email": "a@example.com", "password": "a" * 900_000})
    assert long.status_code in {400, 422}


async def _raw(port: int, request: str) -> int:
    """The status of the answer to these very bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode("latin-1"))
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), timeout=5)
        return int(line.split(b" ")[1])
    finally:
        writer.close()

"""Signing in under attack: many at once, on the same thing, and with what no person would type."""

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from libs.common.clock import system_clock
from libs.common.ids import new_id
from services.gateway.auth.domain import AuthError, Session, User, normalise_email
from services.gateway.auth.tokens import AccessTokens, new_signing_key
from services.gateway.domain import InvalidAccessToken
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.services import Place, run_service

GRANT = "/auth/v1/token?grant_type="


@pytest.fixture(scope="module")
def place(lasting_place: Place) -> Place:
    return lasting_place


@pytest.fixture(scope="module")
async def client(place: Place) -> AsyncGenerator[httpx.AsyncClient, None]:
    settings = gateway_settings(place)
    async with run_service(build(settings)) as gateway:
        gateway.client.headers["apikey"] = settings.next_public_supabase_anon_key.get_secret_value()
        gateway.client.headers["x-supabase-api-version"] = "2024-01-01"
        yield gateway.client


@pytest.fixture
def email() -> str:
    return f"{new_id().hex[-12:]}@example.com"


async def sign_up(client: httpx.AsyncClient, email: str, password: str = "correct horse") -> httpx.Response:
    return await client.post("/auth/v1/signup", json={"email": email, "password": password})


async def letter(place: Place, email: str, kind: str) -> dict[str, Any]:
    mails = "SELECT content FROM gateway.mails WHERE letter = $1 AND address = $2"
    (row,) = await place.database.fetch(mails, kind, email)
    return row["content"]


async def test_of_fifty_who_bring_one_code_at_once_one_comes_in(
    client: httpx.AsyncClient, place: Place, email: str
) -> None:
    await sign_up(client, email)
    await client.post("/auth/v1/otp", json={"email": email})
    code = (await letter(place, email, "magiclink"))["code"]
    asked = {"email": email, "token": code, "type": "email"}
    answers = await asyncio.gather(*(client.post("/auth/v1/verify", json=asked) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 49
    sessions = "SELECT count(*) FROM auth.sessions s JOIN auth.users u ON u.id = s.user_id WHERE u.email = $1"
    assert await place.database.fetchval(sessions, email) == 2  # the sign-up's, and this one


async def test_of_two_who_redeem_one_authorisation_code_at_once_one_gets_tokens(
    client: httpx.AsyncClient, place: Place, email: str
) -> None:
    await sign_up(client, email)
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    flow = {"code_challenge": challenge, "code_challenge_method": "s256"}
    await client.post("/auth/v1/recover", json={"email": email, **flow})
    link = urlsplit(str((await letter(place, email, "recovery"))["link"]))
    landed = await client.get(f"{link.path}?{link.query}", follow_redirects=False)
    code = parse_qs(urlsplit(landed.headers["location"]).query)["code"][0]
    right = {"auth_code": code, "code_verifier": verifier}
    answers = await asyncio.gather(*(client.post(f"{GRANT}pkce", json=right) for _ in range(10)))
    assert sum(answer.status_code == 200 for answer in answers) == 1
    assert all(answer.status_code in {200, 400, 403, 404} for answer in answers)


async def test_asking_again_for_mail_tells_nothing_of_who_has_an_account(client: httpx.AsyncClient, email: str) -> None:
    await sign_up(client, email)
    for path, body in (
        ("/auth/v1/recover", {}),
        ("/auth/v1/resend", {"type": "signup"}),
    ):
        heard: list[list[tuple[int, str]]] = []
        for address in (email, f"nobody.{email}"):
            answers = [await client.post(path, json={"email": address, **body}) for _ in range(3)]
            heard.append([(answer.status_code, re.sub(r"\d+", "N", answer.text)) for answer in answers])
        assert heard[0] == heard[1], path


async def test_refusals_of_a_sign_in_are_one_answer(client: httpx.AsyncClient, place: Place) -> None:
    """Unknown, wrong, banned, unconfirmed, without a password: who does not know the password learns nothing."""
    emails = [f"{kind}@example.com" for kind in ("known", "banned", "unconfirmed", "without")]
    for email in emails:
        await sign_up(client, email)
    change = "UPDATE auth.users SET "
    await place.database.execute(f"{change} banned_until = now() + interval '1 day' WHERE email = $1", emails[1])
    await place.database.execute(f"{change} email_confirmed_at = NULL WHERE email = $1", emails[2])
    await place.database.execute(f"{change} encrypted_password = NULL WHERE email = $1", emails[3])
    heard = set[tuple[Any, ...]]()
    for email in (*emails, "unknown@example.com"):
        answer = await client.post(f"{GRANT}password", json={"email": email, "password": "not the password"})
        headers = {name: value for name, value in answer.headers.items() if name not in {"date", "x-request-id"}}
        headers = {name: value for name, value in headers.items() if not name.startswith("ratelimit")}
        heard.add((answer.status_code, answer.text, str(sorted(headers.items()))))
    assert len(heard) == 1, heard


@pytest.mark.parametrize(
    ("password", "status"),
    [
        ("a" * 7, 422),
        ("a" * 8, 200),
        ("a" * 128, 200),
        ("a" * 129, 400),
        ("a" * 5_000, 400),
        ("pass word with spaces ", 200),
        ("\U0001f40e" * 20, 200),
        ("caf\u00e9 cafe\u0301", 200),
        ("nul\u0000 in between", 400),
        ("\ud800 lone surrogate", 400),
    ],
    ids=str,
)
async def test_a_password_may_be_anything_of_eight_to_128_characters(
    client: httpx.AsyncClient, email: str, password: str, status: int
) -> None:
    body = json.dumps({"email": email, "password": password}).encode()
    answer = await client.post("/auth/v1/signup", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    if status == 200:
        good = await client.post(f"{GRANT}password", json={"email": email, "password": password})
        # One character less is another password: nothing is cut off or trimmed.
        bad = await client.post(f"{GRANT}password", json={"email": email, "password": password[:-1]})
        assert (good.status_code, bad.status_code) == (200, 400)


async def test_what_a_user_sends_along_gives_no_rights(client: httpx.AsyncClient, place: Place) -> None:
    greedy = {
        "email": "eve@example.com",
        "password": "correct horse",
        "data": {"role": "service_role", "admin": True, "plan": "enterprise"},
        "app_metadata": {"role": "admin", "plan": "pro"},
        "role": "service_role",
        "is_super_admin": True,
        "email_confirmed_at": "2020-01-01T00:00:00Z",
        "id": str(new_id()),
    }
    user = (await client.post("/auth/v1/signup", json=greedy)).json()["user"]
    assert (user["role"], user["app_metadata"]) == ("authenticated", {"provider": "email", "providers": ["email"]})
    assert user["id"] != greedy["id"]
    mine = "SELECT subscription_tier, premium_features FROM public.user_profiles WHERE user_id = $1::uuid"
    profile = await place.database.fetch(mine, user["id"])
    assert profile == [{"subscription_tier": "free", "premium_features": {}}]


def signed_in() -> tuple[User, Session]:
    now = system_clock()
    user = User(
        id=new_id(), email="ada@example.com", email_confirmed_at=now, last_sign_in_at=now, confirmation_sent_at=None,
        invited_at=None, recovery_sent_at=None, banned_until=None, app_metadata={}, user_metadata={},
        is_anonymous=False, created_at=now, updated_at=now,
    )  # fmt: skip
    session = Session(
        id=new_id(), user_id=user.id, aal="aal1", amr=(), refresh_key=b"", refresh_counter=0, refreshed_at=None
    )
    return user, session


@pytest.mark.parametrize(("idle_s", "remembered"), [(0, 1), (60, 2)])
def test_a_token_that_nobody_sends_any_more_is_forgotten(idle_s: float, remembered: int) -> None:
    keys = json.dumps([new_signing_key("k")])
    tokens = AccessTokens(signing_keys=keys, issuer="https://x/auth/v1", ttl_s=60, idle_s=idle_s)
    user, session = signed_in()
    other, others = signed_in()
    first, _, _ = tokens.sign(user, session)
    assert tokens.verify(first).user_id == tokens.verify(first).user_id == user.id
    assert tokens.verify(tokens.sign(other, others)[0]).user_id == other.id
    assert tokens.count == remembered
    assert tokens.verify(first).user_id == user.id, "forgotten, it is checked anew"


def test_tokens_of_the_key_before_are_good_until_it_is_taken_out() -> None:
    old, new = new_signing_key("old"), new_signing_key("new")
    user, session = signed_in()

    def tokens(*keys: dict[str, str]) -> AccessTokens:
        return AccessTokens(signing_keys=json.dumps(keys), issuer="https://x/auth/v1", ttl_s=60)

    before, _, _ = tokens(old).sign(user, session)
    during = tokens(new, old)
    assert during.verify(before).user_id == user.id
    after, _, _ = during.sign(user, session)
    assert tokens(new).verify(after).user_id == user.id
    assert [key["kid"] for key in during.jwks()["keys"]] == ["new", "old"]
    assert not [key for key in during.jwks()["keys"] if "d" in key]
    with pytest.raises(InvalidAccessToken):
        tokens(new).verify(before)


@pytest.mark.parametrize("email", ["a" * 50_000 + "@", "@" * 50_000, "a." * 25_000 + "@x.co"])
def test_an_endless_address_is_refused_by_its_length(email: str) -> None:
    with pytest.raises(AuthError):
        normalise_email(email)

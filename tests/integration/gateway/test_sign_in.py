"""Signing up, in, on and out, over HTTP and on a real database."""

import asyncio

import httpx
import jsonschema

from libs.common.events import CATALOGUE
from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.services import Place, run_service
from tests.integration.gateway.conftest import SignedIn


async def test_signing_up_makes_a_user_a_profile_and_the_events_others_need(user: SignedIn, place: Place) -> None:
    profile = await user.client.get("/v1/profile")
    assert profile.status_code == 200, profile.text
    assert profile.json()["subscription_tier"] == "free"
    rows = await place.database.fetch("SELECT type, data FROM gateway.outbox ORDER BY id")
    assert {row["type"] for row in rows} == {"gateway.user_created.v1", "gateway.entitlements_changed.v1"}
    for row in rows:  # written by triggers, in SQL: they must fit the catalogue all the same
        jsonschema.validate(row["data"], CATALOGUE[row["type"]].model_json_schema(mode="validation"))
        assert str(CATALOGUE[row["type"]].model_validate(row["data"]).subject) == user.user_id


async def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(
    anon: httpx.AsyncClient, user: SignedIn
) -> None:
    answers = [
        await anon.post("/auth/v1/token?grant_type=password", json={"email": email, "password": "not the password"})
        for email in (user.email, "nobody@example.com")
    ]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert (
        answers[0].json()
        == answers[1].json()
        == {"code": "invalid_credentials", "message": "Invalid login credentials"}
    )
    assert answers[0].headers["x-supabase-api-version"] == "2024-01-01"


async def test_fifty_simultaneous_refreshes_get_one_and_the_same_new_token(
    anon: httpx.AsyncClient, user: SignedIn
) -> None:
    body = {"refresh_token": user.session["refresh_token"]}
    answers = await asyncio.gather(
        *(anon.post("/auth/v1/token?grant_type=refresh_token", json=body) for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1


async def test_an_old_refresh_token_ends_its_whole_family(
    anon: httpx.AsyncClient, user: SignedIn, place: Place
) -> None:
    first = user.session["refresh_token"]
    newest = first
    for _ in range(2):
        answer = await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": newest})
        newest = answer.json()["refresh_token"]
    await place.database.execute("UPDATE auth.sessions SET refreshed_at = now() - interval '1 minute'")

    reused = await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": first})
    assert (reused.status_code, reused.json()["code"]) == (400, "refresh_token_already_used")
    for token in (newest, first):
        answer = await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": token})
        assert (answer.status_code, answer.json()["code"]) == (400, "refresh_token_not_found")
    assert (await user.client.get("/auth/v1/user", headers={"apikey": anon.headers["apikey"]})).status_code == 403


async def test_a_forged_refresh_token_is_unknown(anon: httpx.AsyncClient, user: SignedIn) -> None:
    token = user.session["refresh_token"]
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    answer = await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": forged})
    assert (answer.status_code, answer.json()["code"]) == (400, "refresh_token_not_found")


async def test_signing_out_ends_the_session_at_once(anon: httpx.AsyncClient, user: SignedIn) -> None:
    headers = {"apikey": anon.headers["apikey"]}
    assert (await user.client.post("/auth/v1/logout?scope=local", headers=headers)).status_code == 204
    answer = await user.client.get("/auth/v1/user", headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (403, "session_not_found")


async def test_a_taken_address_is_refused_and_metadata_gives_no_rights(anon: httpx.AsyncClient, user: SignedIn) -> None:
    again = await anon.post("/auth/v1/signup", json={"email": "ADA@example.com", "password": "another one"})
    assert (again.status_code, again.json()["code"]) == (422, "user_already_exists")
    sly = {
        "email": "eve@example.com",
        "password": "longer than eight",
        "data": {"role": "service_role"},
        "app_metadata": {"plan": "pro"},
    }
    created = (await anon.post("/auth/v1/signup", json=sly)).json()["user"]
    assert created["role"] == "authenticated"
    assert created["app_metadata"] == {"provider": "email", "providers": ["email"]}


async def test_the_service_role_creates_lists_and_deletes_users(anon: httpx.AsyncClient, settings: Settings) -> None:
    key = settings.supabase_service_role_key.get_secret_value()
    admin = {"apikey": key, "Authorization": f"Bearer {key}"}
    body = {"email": "Admin@example.com", "password": "a strong password", "email_confirm": True}
    created = await anon.post("/auth/v1/admin/users", json=body, headers=admin)
    assert created.status_code == 200, created.text
    assert created.json()["email"] == "admin@example.com"
    assert (await anon.post("/auth/v1/admin/users", json=body, headers=admin)).json()["code"] == "email_exists"
    listed = await anon.get("/auth/v1/admin/users?page=&per_page=", headers=admin)
    assert [entry["email"] for entry in listed.json()["users"]] == ["admin@example.com"]
    path = f"/auth/v1/admin/users/{created.json()['id']}"
    assert (await anon.request("DELETE", path, headers=admin)).json() == {}
    assert (await anon.get(path, headers=admin)).json()["code"] == "user_not_found"


async def test_a_call_without_an_api_key_is_refused_except_for_the_public_keys(anon: httpx.AsyncClient) -> None:
    del anon.headers["apikey"]
    assert (await anon.get("/auth/v1/settings")).status_code == 401
    keys = (await anon.get("/auth/v1/.well-known/jwks.json")).json()["keys"]
    assert [sorted(key) for key in keys] == [["alg", "crv", "key_ops", "kid", "kty", "use", "x", "y"]]


async def test_broken_bodies_get_codes_not_crashes(anon: httpx.AsyncClient) -> None:
    broken = await anon.post("/auth/v1/signup", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (400, "bad_json")
    wrong = await anon.post("/auth/v1/signup", json={"email": 3, "password": []})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "validation_failed")
    nul = await anon.post(
        "/auth/v1/signup", json={"email": "n@example.com", "password": "long enough", "data": {"a": "\x00"}}
    )
    assert (nul.status_code, nul.json()["code"]) == (400, "validation_failed")


async def test_a_password_that_is_guessed_first_is_refused_where_it_is_set_and_in_production(
    place: Place, settings: Settings
) -> None:
    assert not settings.refuses_common_passwords
    assert settings.model_copy(update={"environment": "production"}).refuses_common_passwords
    strict = settings.model_copy(update={"auth_refuse_guessable": True})
    headers = {
        "apikey": settings.next_public_supabase_anon_key.get_secret_value(),
        "x-supabase-api-version": "2024-01-01",
    }
    async with run_service(build(strict), mode="api") as gateway:

        async def sign_up(password: str) -> httpx.Response:
            body = {"email": "ada@example.com", "password": password}
            return await gateway.client.post("/auth/v1/signup", json=body, headers=headers)

        refused = await sign_up("P@ssw0rd2026!")
        assert (refused.status_code, refused.json()["code"]) == (422, "weak_password")
        assert refused.json()["weak_password"] == {"reasons": ["pwned"]}
        session = (await sign_up("lantern-harbour-19")).json()
        bearer = {**headers, "Authorization": f"Bearer {session['access_token']}"}
        changed = await gateway.client.put("/auth/v1/user", json={"password": "qwertyuiop"}, headers=bearer)
        assert (changed.status_code, changed.json()["code"]) == (422, "weak_password")

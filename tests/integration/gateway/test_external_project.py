"""A Supabase project signs people in: a second gateway, with a database of its own, plays that project."""

import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import jwt
import pytest
from jwt import PyJWK

from libs.common.ids import new_id
from services.gateway.auth.tokens import new_signing_key
from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.database import new_database
from tests.harness.gateway import JWT_SECRET, gateway_settings
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service
from tests.harness.stripe_emulator import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoHouses:
    """`project` signs people in; `gateway` is told so by SUPABASE_URL."""

    project: RunningService
    gateway: RunningService
    gateway_settings: Settings

    async def sign_up(self, email: str) -> dict[str, Any]:
        """Through the gateway, as a frontend does."""
        key = self.gateway_settings.next_public_supabase_anon_key.get_secret_value()
        headers = {"apikey": key, "x-supabase-api-version": "2024-01-01"}
        body = {"email": email, "password": "correct horse battery"}
        answer = await self.gateway.client.post("/auth/v1/signup", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def profile(self, token: str) -> httpx.Response:
        return await self.gateway.client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
async def projects_place(place: Place) -> AsyncGenerator[Place, None]:
    async with new_database(place.database.servers) as database:
        yield replace(place, database=database)


@pytest.fixture
def project_settings(projects_place: Place) -> Settings:
    port = free_port()
    return gateway_settings(projects_place, port=port, next_public_supabase_url=f"http://127.0.0.1:{port}")


def outer_settings(place: Place, project: Settings, **overrides: Any) -> Settings:
    return gateway_settings(
        place,
        supabase_url=project.next_public_supabase_url,
        auth_signing_keys=None,
        supabase_jwt_secret=None,
        next_public_supabase_anon_key=project.next_public_supabase_anon_key,
        supabase_service_role_key=project.supabase_service_role_key,
        **overrides,
    )


@pytest.fixture
async def houses(place: Place, project_settings: Settings) -> AsyncGenerator[TwoHouses, None]:
    settings = outer_settings(place, project_settings)
    async with (
        run_service(build(project_settings), mode="api", port=project_settings.port) as project,
        run_service(build(settings), mode="api") as gateway,
    ):
        yield TwoHouses(project=project, gateway=gateway, gateway_settings=settings)


async def test_who_signs_up_at_the_project_has_a_profile_here_at_first_sight(houses: TwoHouses, place: Place) -> None:
    session = await houses.sign_up("ada@example.com")
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 0
    profile = await houses.profile(session["access_token"])
    assert (profile.status_code, profile.json()["email"]) == (200, "ada@example.com")
    assert profile.json()["user_id"] == session["user"]["id"]
    rows = await place.database.fetch("SELECT type FROM gateway.outbox")
    assert {row["type"] for row in rows} == {"gateway.user_created.v1", "gateway.entitlements_changed.v1"}
    kept = await place.database.fetch("SELECT encrypted_password, email_confirmed_at FROM auth.users")
    assert kept[0]["encrypted_password"] is None


async def test_refusals_of_the_project_come_through_as_it_gave_them(houses: TwoHouses) -> None:
    key = houses.gateway_settings.next_public_supabase_anon_key.get_secret_value()
    headers = {"apikey": key, "x-supabase-api-version": "2024-01-01"}
    body = {"email": "nobody@example.com", "password": "not the password"}
    answer = await houses.gateway.client.post("/auth/v1/token?grant_type=password", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_credentials")
    assert answer.headers["x-supabase-api-version"] == "2024-01-01"
    click = await houses.gateway.client.get("/auth/v1/verify?token=no&type=signup&redirect_to=http://evil.example")
    assert click.status_code == 303  # for the browser to follow, not for us
    assert "evil.example" not in click.headers["location"]
    for path in ("/auth/v1/%2e%2e/v1/profile", "/auth/v1/..%2fv1/profile", "/auth/v1/x/%2e%2e/%2e%2e/v1/profile"):
        assert (await houses.gateway.client.get(path, headers=headers)).status_code in {401, 404}
    for path in ("/auth/v1/us%0Aer", "/auth/v1/user%09", "/auth/v1/%C2%85"):
        nowhere = await houses.gateway.client.get(path, headers=headers)
        assert (nowhere.status_code, nowhere.json()["code"]) == (404, "validation_failed")


async def test_a_change_at_the_project_arrives_with_the_next_token(houses: TwoHouses, place: Place) -> None:
    session = await houses.sign_up("ada@example.com")
    await houses.profile(session["access_token"])
    service_key = houses.gateway_settings.supabase_service_role_key.get_secret_value()
    admin = {"apikey": service_key, "Authorization": f"Bearer {service_key}"}
    change = {"email": "lovelace@example.com", "app_metadata": {"role": "admin"}}
    path = f"/auth/v1/admin/users/{session['user']['id']}"
    changed = await houses.gateway.client.put(path, json=change, headers=admin)
    assert changed.status_code == 200, changed.text

    async def is_in_step() -> bool:
        body = {"refresh_token": session["refresh_token"]}
        headers = {"apikey": houses.gateway_settings.next_public_supabase_anon_key.get_secret_value()}
        answer = await houses.gateway.client.post("/auth/v1/token?grant_type=refresh_token", json=body, headers=headers)
        session.update(answer.json())
        token = {"Authorization": f"Bearer {session['access_token']}"}
        return (await houses.gateway.client.get("/v1/admin/users", headers=token)).status_code == 200

    await eventually(is_in_step, within_s=8)
    assert await place.database.fetchval("SELECT email FROM auth.users") == "lovelace@example.com"


async def test_signing_out_at_the_project_ends_what_needs_a_living_session(houses: TwoHouses, place: Place) -> None:
    session = await houses.sign_up("ada@example.com")
    token = {"Authorization": f"Bearer {session['access_token']}"}
    await houses.profile(session["access_token"])
    key = houses.gateway_settings.next_public_supabase_anon_key.get_secret_value()
    out = await houses.gateway.client.post("/auth/v1/logout", headers={**token, "apikey": key})
    assert out.status_code == 204
    refused = await houses.gateway.client.request("DELETE", "/v1/account", json={"confirm": True}, headers=token)
    assert (refused.status_code, refused.json()["code"]) == (401, "gateway.sign_in_required")
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 1


async def test_a_deleted_account_is_gone_in_both_houses_and_no_token_brings_it_back(
    houses: TwoHouses, place: Place, projects_place: Place
) -> None:
    session = await houses.sign_up("ada@example.com")
    token = {"Authorization": f"Bearer {session['access_token']}"}
    await houses.profile(session["access_token"])
    gone = await houses.gateway.client.request("DELETE", "/v1/account", json={"confirm": True}, headers=token)
    assert gone.status_code == 202, gone.text
    assert await projects_place.database.fetchval("SELECT count(*) FROM auth.users") == 0
    assert (await houses.profile(session["access_token"])).status_code == 401
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 0


async def test_tokens_outlive_a_rotation_of_keys_and_withdrawn_keys_do_not(
    place: Place, project_settings: Settings
) -> None:
    old, new = new_signing_key("old"), new_signing_key("new")
    settings = outer_settings(place, project_settings, supabase_jwks_ttl_s=0)

    def project(*keys: dict[str, str]) -> Any:
        return run_service(
            build(project_settings.model_copy(update={"auth_signing_keys": secret_of(json.dumps(keys))})),
            mode="api",
            port=project_settings.port,
        )

    secret_of: Callable[[str], Any] = type(project_settings.supabase_service_role_key)
    async with run_service(build(settings), mode="api") as gateway:
        houses = TwoHouses(project=gateway, gateway=gateway, gateway_settings=settings)
        async with project(old):
            before = (await houses.sign_up("ada@example.com"))["access_token"]
            assert (await houses.profile(before)).status_code == 200
        assert (await houses.profile(before)).status_code == 200  # the project is away, its keys are kept
        async with project(new, old):
            after = (await houses.sign_up("bob@example.com"))["access_token"]
            assert [(await houses.profile(token)).status_code for token in (before, after)] == [200, 200]
        async with project(new), run_service(build(settings), mode="api") as fresh:
            answers = [
                await fresh.client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})
                for token in (before, after)
            ]
            assert [answer.status_code for answer in answers] == [401, 200]


async def test_tokens_signed_with_the_shared_secret_are_accepted_only_where_it_is_set(
    place: Place, project_settings: Settings
) -> None:
    claims = {
        "iss": project_settings.issuer,
        "sub": str(new_id()),
        "aud": "authenticated",
        "role": "authenticated",
        "email": "ada@example.com",
        "iat": int(time.time()),
        "exp": int(time.time()) + 60,
    }
    token = {"Authorization": f"Bearer {jwt.encode(claims, JWT_SECRET, algorithm='HS256')}"}
    with_secret = outer_settings(place, project_settings).model_copy(
        update={"supabase_jwt_secret": type(project_settings.supabase_service_role_key)(JWT_SECRET)}
    )
    async with run_service(build(with_secret), mode="api") as gateway:
        assert (await gateway.client.get("/v1/profile", headers=token)).status_code == 200
    async with run_service(build(outer_settings(place, project_settings)), mode="api") as gateway:
        assert (await gateway.client.get("/v1/profile", headers=token)).status_code == 401


async def test_while_the_project_is_away_sign_in_says_so_in_its_own_words(
    place: Place, project_settings: Settings
) -> None:
    async with run_service(build(outer_settings(place, project_settings)), mode="api") as gateway:
        headers = {"apikey": "anything", "x-supabase-api-version": "2024-01-01"}
        answer = await gateway.client.post("/auth/v1/token?grant_type=password", json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "unexpected_failure")
        signing_key = PyJWK({**new_signing_key("unseen"), "alg": "ES256"}).key
        token = jwt.encode({"sub": str(new_id())}, signing_key, algorithm="ES256", headers={"kid": "unseen"})
        profile = await gateway.client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})
        assert (profile.status_code, profile.json()["code"]) == (503, "gateway.sign_in_unavailable")


async def test_an_admin_enters_the_console_by_the_projects_password(houses: TwoHouses, place: Place) -> None:
    session = await houses.sign_up("ada@example.com")
    await houses.profile(session["access_token"])
    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{\"admin\": true}'")
    browser = houses.gateway.client
    browser.headers["Origin"] = houses.gateway.base_url

    async def enter(password: str) -> int:
        form = {"email": "ada@example.com", "password": password}
        return (await browser.post("/console/sign-in", data=form)).status_code

    async def is_in() -> bool:
        return await enter("correct horse battery") == 303

    await eventually(is_in, within_s=6, every_s=0.5)
    assert (await browser.get("/console/users")).status_code == 200
    assert await enter("not the password") == 401

"""The console's door: who gets in, with what, what a change must bring along, and what everybody else is told."""

import re
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import pytest
from pyotp.totp import TOTP

from services.gateway.console.domain import cookie_of, form_token
from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service
from tests.integration.gateway.conftest import SignedIn

PASSWORD = "correct horse"
SOME_ID = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def browser(gateway: RunningService) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Keeps cookies and names its origin, as a browser does; follows no redirect by itself."""
    async with httpx.AsyncClient(base_url=gateway.base_url, timeout=10, headers={"Origin": gateway.base_url}) as client:
        yield client


@pytest.fixture
async def admin(user: SignedIn, place: Place) -> SignedIn:
    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{\"admin\": true}'")
    return user


async def sign_in(
    browser: httpx.AsyncClient, email: str = "ada@example.com", password: str = PASSWORD
) -> httpx.Response:
    form = {"email": email, "password": password}

    async def answer() -> httpx.Response | None:
        # Being an admin is seen within seconds of becoming one.
        response = await browser.post("/console/sign-in", data=form)
        return response if response.status_code == 303 else None

    response = await eventually(answer, within_s=6, every_s=0.5)
    assert response is not None
    return response


async def token_of(browser: httpx.AsyncClient) -> str:
    page = (await browser.get("/console/maintenance")).text
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found is not None, page
    return found[1]


def console_of(gateway: RunningService) -> Any:
    """The console's own application, inside the edge and the check of service tokens."""
    edge: Any = gateway.service.app
    return edge._app._app._console


async def test_who_is_no_admin_finds_nothing_on_any_page_or_admin_route(
    user: SignedIn, gateway: RunningService, anon: httpx.AsyncClient
) -> None:
    document = (await anon.get("/openapi.json")).json()["paths"]
    admin_routes = {path: methods for path, methods in document.items() if path.startswith("/v1/admin")}
    pages = console_of(gateway).openapi()["paths"]
    assert len(pages) > 20
    assert len(admin_routes) > 10
    for template, methods in {**pages, **admin_routes}.items():
        path = re.sub(r"\{[^}]+\}", SOME_ID, template)
        for method in methods:
            answer = await user.client.request(method.upper(), path, json={} if method != "get" else None)
            assert answer.status_code == 404, f"{method} {path}: {answer.status_code}"


async def test_an_admin_signs_in_and_keeps_a_cookie_that_is_good_for_nothing_else(
    admin: SignedIn, browser: httpx.AsyncClient, anon: httpx.AsyncClient
) -> None:
    answer = await sign_in(browser)
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/console"))
    assert (await browser.get("/console")).status_code == 200
    value = browser.cookies["venture_console"]
    refresh = await anon.post("/auth/v1/token?grant_type=refresh_token", json={"refresh_token": value})
    assert refresh.status_code == 400
    bearer = await anon.get("/v1/admin/users", headers={"Authorization": f"Bearer {value}"})
    assert bearer.status_code == 401


async def test_a_user_with_the_right_password_learns_nothing_and_gets_no_session(
    user: SignedIn, browser: httpx.AsyncClient, place: Place
) -> None:
    before = await place.database.fetchval("SELECT count(*) FROM auth.sessions")
    answer = await browser.post("/console/sign-in", data={"email": user.email, "password": PASSWORD})
    assert (answer.status_code, "set-cookie" in answer.headers) == (404, False)
    assert await place.database.fetchval("SELECT count(*) FROM auth.sessions") == before


async def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(
    admin: SignedIn, browser: httpx.AsyncClient
) -> None:
    answers = [
        await browser.post("/console/sign-in", data={"email": email, "password": "wrong"})
        for email in (admin.email, "nobody@example.com")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    first, second = (answer.text.replace(admin.email, "").replace("nobody@example.com", "") for answer in answers)
    assert first == second


async def test_whoever_is_nobody_is_led_to_the_way_in_and_back(admin: SignedIn, browser: httpx.AsyncClient) -> None:
    answer = await browser.get("/console/users")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in?next=/console/users")
    part = await browser.get("/console/users", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (204, "/console/sign-in?next=/console/users")
    for wanted, path in (
        ("/console/users", "/console/users"),
        ("//evil.example", "/console"),
        ("/v1/runs", "/console"),
    ):
        form = {"email": admin.email, "password": PASSWORD, "next": wanted}

        async def lands(form: dict[str, str] = form, path: str = path) -> bool:
            return (await browser.post("/console/sign-in", data=form)).headers.get("location") == path

        await eventually(lands, within_s=6, every_s=0.5)


async def test_a_change_needs_the_pages_own_token_and_origin(
    admin: SignedIn, browser: httpx.AsyncClient, place: Place
) -> None:
    await sign_in(browser)
    token = await token_of(browser)
    form = {"minutes": "15", "reason": "trying"}
    foreign = {"Origin": "https://evil.example"}
    for attempt, headers in (
        (form, {}),
        ({**form, "csrf": "0" * 64}, {}),
        ({**form, "csrf": token}, foreign),
        ({**form, "csrf": token}, {"Origin": "null"}),
    ):
        answer = await browser.post("/console/maintenance/close", data=attempt, headers=headers)
        assert answer.status_code == 403
    assert await place.database.fetchval("SELECT count(*) FROM gateway.switches") == 0
    login = await browser.post("/console/sign-in", data={"email": admin.email, "password": PASSWORD}, headers=foreign)
    assert login.status_code == 403
    done = await browser.post("/console/maintenance/close", data={**form, "csrf": token})
    assert (done.status_code, done.headers["location"]) == (303, "/console/maintenance?did=closed&n=1")
    assert await place.database.fetchval("SELECT is_on FROM gateway.switches") is True


async def test_a_forged_or_old_cookie_opens_nothing(admin: SignedIn, browser: httpx.AsyncClient, place: Place) -> None:
    await sign_in(browser)
    session_id, seal = browser.cookies["venture_console"].split(".")
    rows = await place.database.fetch("SELECT id, refresh_key FROM auth.sessions")
    other = next(row for row in rows if str(row["id"]) != session_id)
    for forged in (f"{session_id}.{'0' * 64}", f"{other['id']}.{seal}", "nonsense", f"{session_id}."):
        answer = await browser.get("/console", headers={"Cookie": f"venture_console={forged}"})
        assert answer.status_code == 303
    await place.database.execute("UPDATE auth.sessions SET created_at = now() - interval '13 hours'")
    assert (await browser.get("/console")).status_code == 303


async def test_signing_out_ends_the_session_itself(admin: SignedIn, browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    value = browser.cookies["venture_console"]
    answer = await browser.post("/console/sign-out", data={"csrf": await token_of(browser)})
    assert answer.headers["location"] == "/console/sign-in"
    kept = await browser.get("/console", headers={"Cookie": f"venture_console={value}"})
    assert kept.status_code == 303


async def test_a_right_that_is_taken_away_closes_every_page(
    admin: SignedIn, browser: httpx.AsyncClient, place: Place
) -> None:
    await sign_in(browser)
    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{}'")

    async def is_shut() -> bool:
        return (await browser.get("/console/users")).status_code == 404

    await eventually(is_shut, within_s=5, every_s=0.3)
    assert (await browser.get("/console/sign-in")).status_code == 404


async def test_a_second_factor_is_asked_for_before_anything_else(
    admin: SignedIn, anon: httpx.AsyncClient, browser: httpx.AsyncClient
) -> None:
    headers = {"Authorization": f"Bearer {admin.session['access_token']}"}
    factor = (await anon.post("/auth/v1/factors", json={"factor_type": "totp"}, headers=headers)).json()
    path, totp = f"/auth/v1/factors/{factor['id']}", TOTP(factor["totp"]["secret"])
    challenge = (await anon.post(f"{path}/challenge", headers=headers)).json()
    answer = {"challenge_id": challenge["id"], "code": totp.now()}
    assert (await anon.post(f"{path}/verify", json=answer, headers=headers)).status_code == 200

    assert (await sign_in(browser)).headers["location"] == "/console/code"
    assert (await browser.get("/console/users")).headers["location"] == "/console/code"
    page = (await browser.get("/console/code")).text
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert found is not None
    used = await browser.post("/console/code", data={"csrf": found[1], "code": answer["code"]})
    assert used.status_code == 401  # a code is good once
    later = totp.at(for_time=0, counter_offset=int(totp.timecode(_now())) + 1)
    assert (await browser.post("/console/code", data={"csrf": found[1], "code": later})).status_code == 303
    assert (await browser.get("/console/users")).status_code == 200


def _now() -> Any:
    from libs.common.clock import system_clock  # noqa: PLC0415 - TOTP is about the wall clock

    return system_clock()


async def test_the_overview_tells_of_services_that_do_not_answer(admin: SignedIn, browser: httpx.AsyncClient) -> None:
    await sign_in(browser)
    answer = await browser.get("/console")
    assert answer.status_code == 200
    assert "<strong>billing</strong> does not answer" in answer.text
    for path in ("/console/runs", "/console/stripe"):
        assert (await browser.get(path)).status_code == 503
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert " style=" not in answer.text
    assert "<script>" not in answer.text


async def test_the_door_stays_open_while_the_house_is_closed(place: Place) -> None:
    settings = gateway_settings(place, maintenance_mode=True)
    async with run_service(build(settings)) as gateway:
        assert (await gateway.client.get("/v1/usage")).status_code == 503
        assert (await gateway.client.get("/console/sign-in")).status_code == 200


async def test_guessing_passwords_is_slowed_down_as_at_sign_in(place: Place) -> None:
    settings: Settings = gateway_settings(place, auth_rate_limit_max_requests=2)
    async with run_service(build(settings)) as gateway:
        form = {"email": "ada@example.com", "password": "guess"}
        headers = {"Origin": gateway.base_url}
        statuses = [
            (await gateway.client.post("/console/sign-in", data=form, headers=headers)).status_code for _ in range(3)
        ]
        assert statuses == [401, 401, 429]


def test_a_session_seals_its_cookie_and_its_forms_apart() -> None:
    session_id, key = UUID(SOME_ID), b"k" * 32
    assert cookie_of(session_id, key).partition(".")[2] != form_token(key)

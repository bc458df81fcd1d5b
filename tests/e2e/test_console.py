"""The console as an operator uses it, in Chromium, against a whole stack."""

import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Final

import aio_pika
import httpx
import pytest
from aio_pika.abc import HeadersType
from playwright.async_api import Browser, BrowserContext, Page, Response, expect

from libs.common.broker import parked_queue
from libs.common.events.metering import ThresholdReached
from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.accessibility import serious_problems
from tests.harness.browser import open_browser
from tests.harness.live import facts_of_billing, find, stripe_event
from tests.harness.patience import eventually

QUEUE: Final = f"gateway.{ThresholdReached.type}"
PAGES: Final = ("", "/queues", "/stripe", "/users", "/runs", "/maintenance", "/audit")
MAX_PAGE_BYTES: Final = 300_000
PASSWORD: Final = "correct horse battery"


@pytest.fixture(scope="module")
async def browser() -> AsyncGenerator[Browser, None]:
    async with open_browser() as browser:
        yield browser


@pytest.fixture
async def screen(browser: Browser) -> AsyncGenerator[BrowserContext, None]:
    context = await browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    yield context
    await context.close()


@pytest.fixture
async def operator(screen: BrowserContext, environment: Mapping[str, str]) -> Page:
    """Signed in, on the overview."""
    page = await screen.new_page()
    await page.goto(f"{environment['GATEWAY_URL']}/console/queues")
    await page.get_by_label("E-mail").fill(environment["ADMIN_EMAIL"])
    await page.get_by_label("Password").fill(environment["ADMIN_PASSWORD"])
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Queues")).to_be_visible()  # where one wanted to go
    return page


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Path | None:
    folder = request.config.getoption("--screenshots")
    return Path(str(folder)) if folder else None


async def a_user(environment: Mapping[str, str]) -> dict[str, str]:
    """Somebody new: id and access token."""
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], timeout=20) as client:
        response = await client.post(
            "/auth/v1/signup",
            json={"email": f"{new_id().hex[-12:]}@example.com", "password": PASSWORD},
            headers={"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]},
        )
        response.raise_for_status()
        session = response.json()
        return {"id": session["user"]["id"], "email": session["user"]["email"], "token": session["access_token"]}


async def park(environment: Mapping[str, str], user_id: str) -> str:
    """A message that failed for a reason that is gone by now; returns its id."""
    event_id = str(new_id())
    data = {"user_id": user_id, "metric": "runs", "percent": 80, "used": 40, "limit": 50}
    body = {
        "specversion": "1.0",
        "id": event_id,
        "type": ThresholdReached.type,
        "source": "metering",
        "subject": user_id,
        "time": "2026-01-01T00:00:00.000Z",
        "data": {**data, "period_end": "2026-02-01T00:00:00.000Z"},
    }
    headers: HeadersType = {
        "x-parked-reason": "attempts_exhausted",
        "x-parked-error": "ForeignKeyViolationError",
        "x-parked-from": QUEUE,
        "x-parked-attempts": 4,
    }
    connection = await aio_pika.connect(environment["AMQP_URL"])
    async with connection, connection.channel() as channel:
        message = aio_pika.Message(
            json.dumps(body).encode(), message_id=event_id, headers=headers, content_type="application/cloudevents+json"
        )
        await channel.default_exchange.publish(message, routing_key=parked_queue(QUEUE))
    return event_id


async def test_an_operator_replays_a_parked_message_and_it_is_handled(
    operator: Page, environment: Mapping[str, str], keep: Path | None
) -> None:
    user = await a_user(environment)
    event_id = await park(environment, user["id"])
    # The page is not loaded again: what is parked appears by itself, as often as queues are looked at.
    await expect(operator.get_by_role("row", name=QUEUE).locator(".badge")).to_have_text("1", timeout=20_000)
    if keep is not None:
        await operator.get_by_role("link", name="Overview").click()
        await expect(operator.locator(".verdict.bad")).to_be_visible()
        await operator.screenshot(path=keep / "console-overview.png")
        await operator.get_by_role("link", name="Queues", exact=True).click()
    await operator.get_by_role("link", name=QUEUE).click()
    message = operator.get_by_role("article", name=event_id)
    await expect(message).to_contain_text("ForeignKeyViolationError")
    await message.get_by_text("Body").click()
    if keep is not None:
        await operator.screenshot(path=keep / "console-parked.png")
    await message.get_by_role("button", name="Replay").click()
    await expect(operator.get_by_role("status")).to_have_text("Sent back to the queue: 1.")
    await expect(operator.get_by_text("Nothing is parked here.")).to_be_visible()

    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], timeout=20) as client:
        headers = {"Authorization": f"Bearer {user['token']}", "Last-Event-ID": "0"}
        async with client.stream("GET", "/v1/events", headers=headers) as stream:
            async for line in stream.aiter_lines():
                if line == "event: usage.threshold_reached":
                    break
            else:
                raise AssertionError("the event never reached its user")

    await operator.get_by_role("link", name="Audit").click()
    await expect(operator.locator(".entry").first).to_contain_text("parked replayed")


async def test_an_operator_replays_a_stripe_event_twice_and_nothing_changes(
    operator: Page, environment: Mapping[str, str], stack: Stack
) -> None:
    event_id = await stripe_event(environment)

    async def is_worked_off() -> bool:
        waiting = "SELECT count(*) FROM billing.refreshes WHERE done < wanted"
        handled = "SELECT handled_at IS NOT NULL FROM billing.stripe_events WHERE id = %s"
        return find(environment, waiting) == 0 and find(environment, handled, event_id)

    await eventually(is_worked_off, within_s=15)
    before = facts_of_billing(stack)
    await operator.get_by_role("link", name="Stripe").click()
    await operator.locator(f'a[href="/console/stripe/{event_id}"]').click()
    for _ in range(2):
        await operator.get_by_role("button", name="Replay").click()
        await expect(operator.get_by_role("status")).to_contain_text("fetched from Stripe again (1 object)")
        await eventually(is_worked_off, within_s=15)
    assert facts_of_billing(stack) == before
    audited = "SELECT count(*) FROM gateway.audit_log WHERE action = 'stripe_event_replayed' AND subject = %s"
    assert find(environment, audited, event_id) == 2


async def test_an_operator_closes_the_house_and_opens_it_again(
    operator: Page, environment: Mapping[str, str], keep: Path | None
) -> None:
    user = await a_user(environment)
    operator.on("dialog", lambda dialog: dialog.accept())

    async def answers(status: int) -> None:
        async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], timeout=20) as client:

            async def is_so() -> bool:
                headers = {"Authorization": f"Bearer {user['token']}"}
                return (await client.get("/v1/usage", headers=headers)).status_code == status

            await eventually(is_so, within_s=5)

    await operator.get_by_role("link", name="Maintenance").click()
    await operator.get_by_label("What").select_option("usage")
    await operator.get_by_label("Reason").fill("moving the counters")
    await operator.get_by_role("button", name="Close").click()
    await answers(503)
    row = operator.get_by_role("row", name="maintenance:usage")
    await expect(row).to_contain_text("moving the counters")
    if keep is not None:
        await operator.screenshot(path=keep / "console-maintenance.png")
    await row.get_by_role("button", name="Open").click()
    await expect(operator.get_by_role("status")).to_have_text("Open again.")
    await answers(200)


async def test_every_page_is_light_and_accessible_in_the_dark_and_on_a_phone(
    operator: Page, environment: Mapping[str, str], keep: Path | None
) -> None:
    user = await a_user(environment)
    problems: list[str] = []
    for path in (*PAGES, f"/users/{user['id']}", f"/queues/{QUEUE}"):
        weight = 0

        async def weigh(response: Response) -> None:
            nonlocal weight
            if "text/event-stream" not in response.headers.get("content-type", ""):
                weight += int(response.headers.get("content-length", 0))

        operator.on("response", weigh)
        await operator.goto(f"{environment['GATEWAY_URL']}/console{path}", wait_until="load")
        operator.remove_listener("response", weigh)
        # What the browser kept counts, too: a first visitor must fetch it.
        weight += await operator.evaluate(
            "performance.getEntriesByType('resource').reduce((sum, it) => sum + it.encodedBodySize, 0)"
        )
        assert 0 < weight < MAX_PAGE_BYTES, f"{path} needs {weight} bytes"
        problems += await serious_problems(operator)
        await operator.emulate_media(color_scheme="dark")
        problems += [f"dark {problem}" for problem in await serious_problems(operator, only="color-contrast")]
        await operator.emulate_media(color_scheme="light")
        await operator.set_viewport_size({"width": 390, "height": 800})
        width = await operator.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{path} is {width} wide on a phone"
        await operator.set_viewport_size({"width": 1280, "height": 860})
    assert problems == []
    if keep is not None:
        await operator.emulate_media(color_scheme="dark")
        await operator.set_viewport_size({"width": 390, "height": 800})
        await operator.goto(f"{environment['GATEWAY_URL']}/console")
        await operator.screenshot(path=keep / "console-phone-dark.png")


async def test_the_way_in_is_accessible_and_shows_a_user_nothing(
    screen: BrowserContext, environment: Mapping[str, str]
) -> None:
    user = await a_user(environment)
    page = await screen.new_page()
    await page.goto(f"{environment['GATEWAY_URL']}/console")
    assert await serious_problems(page) == []
    await page.keyboard.type(user["email"])  # the first field has the focus
    await page.keyboard.press("Tab")
    await page.keyboard.type(PASSWORD)
    async with page.expect_response("**/console/sign-in") as answer:
        await page.keyboard.press("Enter")
    assert (await answer.value).status == 404
    await expect(page.get_by_role("heading")).to_have_text("There is nothing here")
    assert await screen.cookies() == []

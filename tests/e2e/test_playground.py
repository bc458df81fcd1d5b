"""What a newcomer does first, in Chromium: sign up, run with live text, see the meter move, upgrade."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Page, Response, expect

from libs.common.ids import new_id
from tests.harness.accessibility import serious_problems
from tests.harness.browser import open_browser

MAX_PAGE_BYTES: Final = 300_000


@pytest.fixture
async def page() -> AsyncGenerator[Page, None]:
    async with open_browser() as browser:
        context = await browser.new_context(viewport={"width": 1280, "height": 860})
        context.set_default_timeout(20_000)
        yield await context.new_page()


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Path | None:
    folder = request.config.getoption("--screenshots")
    return Path(str(folder)) if folder else None


async def test_a_newcomer_runs_an_agent_and_upgrades(
    page: Page, environment: Mapping[str, str], keep: Path | None
) -> None:
    weight = 0
    complaints: list[str] = []

    async def weigh(response: Response) -> None:
        nonlocal weight
        weight += int(response.headers.get("content-length", 0))

    page.on("response", weigh)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(environment["GATEWAY_URL"])
    assert 0 < weight < MAX_PAGE_BYTES
    assert await serious_problems(page) == []
    if keep is not None:
        await page.screenshot(path=keep / "playground-welcome.png")
    await page.get_by_label("E-mail").fill(f"{new_id().hex[-12:]}@example.com")
    await page.get_by_label("Password").fill("correct horse battery")
    await page.get_by_role("button", name="Sign up").click()

    usage = page.get_by_role("region", name="Your plan")
    await expect(usage).to_contain_text("0 of 50")
    await page.get_by_label("Playfulness").fill("80")
    await page.get_by_role("button", name="Run", exact=True).click()
    answer = page.get_by_role("region", name="Answer").locator("#answer")
    await expect(answer).to_contain_text("Summary")
    await expect(answer).to_have_attribute("aria-busy", "true")  # it is being written
    if keep is not None:
        await page.screenshot(path=keep / "playground-run.png")
    await expect(answer).to_have_attribute("aria-busy", "false")
    await expect(answer).to_contain_text("Checklist")
    await expect(usage).to_contain_text("1 of 50")
    await expect(page.get_by_role("log")).to_contain_text("metering settled the hold")
    assert await serious_problems(page) == []
    await page.emulate_media(color_scheme="dark")
    assert await serious_problems(page, only="color-contrast") == []
    await page.emulate_media(color_scheme="light")

    await page.get_by_role("button", name="Upgrade to Pro 1,000 runs").click()
    await page.get_by_role("button", name="Pay").click()
    await expect(page.get_by_role("status").filter(has_text="You are on pro now.")).to_be_visible()
    await expect(usage).to_contain_text("1 of 1,000")
    await expect(answer).to_contain_text("Checklist")  # the answer is still there
    await expect(usage.get_by_role("button", name="Manage the subscription")).to_be_visible()
    if keep is not None:
        await page.screenshot(path=keep / "playground-upgraded.png")
    assert complaints == []

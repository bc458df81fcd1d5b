"""The system's Chromium, installed where it is missing and driven by Playwright."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from playwright.async_api import Browser, async_playwright

from ops.engines.packages import ensure_program

# Chromium calls home by itself; on a machine without a way out, each of those calls would stand until it times out.
_QUIET: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def open_browser() -> AsyncGenerator[Browser, None]:
    program = ensure_program("chromium", package="chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=[*_QUIET], timeout=60_000)
        try:
            yield browser
        finally:
            await browser.close()

"""axe-core against a page as it stands in the browser."""

from typing import Any, Final

from playwright.async_api import Page

from tests.harness.javascript import client_folder

_RUN: Final = "(only) => axe.run(document, { resultTypes: ['violations'], ...(only && { runOnly: [only] }) })"


async def serious_problems(page: Page, *, only: str = "") -> list[str]:
    """What axe calls serious or critical: the rule, and the elements it speaks of. `only`: by this one rule."""
    source = client_folder("axe") / "node_modules/axe-core/axe.min.js"
    await page.evaluate(source.read_text(encoding="utf-8"))
    found: dict[str, Any] = await page.evaluate(_RUN, only)
    return [
        f"{page.url}: {violation['id']}: {[node['target'] for node in violation['nodes']][:5]}"
        for violation in found["violations"]
        if violation["impact"] in {"serious", "critical"}
    ]

"""Forms of the console as a browser sends them: with what the page put into them, and what somebody typed."""

import re
from collections.abc import Mapping

import httpx


async def form_on(client: httpx.AsyncClient, page: str, action: str, *, field: str = "csrf") -> dict[str, str]:
    """The hidden fields of the page's form for this act; of several, of the one that has the field."""
    html = (await client.get(page)).text
    forms = re.findall(rf'<form method="post" action="{re.escape(action)}".*?</form>', html, re.DOTALL)
    filled = [dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)) for form in forms]
    found = next((form for form in filled if field in form), None)
    assert found is not None, f"{page} has no form for {action} with {field}"
    return found


async def send(client: httpx.AsyncClient, action: str, form: Mapping[str, str], **typed: str) -> httpx.Response:
    return await client.post(action, data={**form, **typed})


async def press(client: httpx.AsyncClient, page: str, action: str, **typed: str) -> httpx.Response:
    return await send(client, action, await form_on(client, page, action), **typed)

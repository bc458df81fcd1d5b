"""The documents that are served are the reviewed ones, and a page shows them."""

import json

import httpx

from tests.contracts.documents import ASYNCAPI_FILE, OPENAPI_FILE


async def test_the_served_documents_are_the_reviewed_ones(anon: httpx.AsyncClient) -> None:
    reviewed = json.loads(OPENAPI_FILE.read_text(encoding="utf-8"))
    served = (await anon.get("/openapi.json")).json()
    assert served["paths"].keys() == reviewed["paths"].keys()
    assert served == reviewed
    assert (await anon.get("/asyncapi.json")).json() == json.loads(ASYNCAPI_FILE.read_text(encoding="utf-8"))


async def test_the_page_runs_nothing_but_its_own_script(anon: httpx.AsyncClient) -> None:
    page = await anon.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/docs/reference.js", "/docs/reference.css"):
        assert path in page.text
        assert (await anon.get(path)).status_code == 200


async def test_internal_routes_cannot_be_reached(anon: httpx.AsyncClient) -> None:
    for path in ("/internal/usage", "//internal/usage", "/%69nternal/usage", "/v1/../internal/usage", "/internal;x"):
        assert (await anon.get(path)).status_code in {401, 404}

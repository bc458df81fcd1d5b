"""The documents that are served are the reviewed ones, and a page shows them."""

import json

import httpx

from libs.common.plans import load_plans
from services.gateway.metered import METERED
from services.gateway.passthrough import PASSED
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


async def test_no_creating_route_forgets_its_limit(anon: httpx.AsyncClient) -> None:
    paths = (await anon.get("/openapi.json")).json()["paths"]
    creating = {f"POST {path}": it["post"] for path, it in paths.items() if "post" in it and "/auth/v1" not in path}
    undeclared = [name for name, operation in creating.items() if "x-metered" not in operation]
    assert undeclared == [], "declare in services/gateway/metered.py what these routes take, or that they are UNMETERED"
    assert creating["POST /v1/runs"]["x-metered"] == {"metrics": ["runs", "tokens"], "features": []}
    described = {f"{method.upper()} {path}" for path, it in paths.items() for method in it}
    assert METERED.keys() <= described, "these routes do not exist any more"
    assert {metric for it in METERED.values() for metric in it.metrics} <= load_plans().meters.keys()
    for passed in PASSED:
        if passed.uses:
            assert METERED[f"{passed.method} {passed.path}"].metrics == (passed.uses,)


async def test_internal_routes_cannot_be_reached(anon: httpx.AsyncClient) -> None:
    for path in ("/internal/usage", "//internal/usage", "/%69nternal/usage", "/v1/../internal/usage", "/internal;x"):
        assert (await anon.get(path)).status_code in {401, 404}

"""The OpenAPI document tells what is really answered."""

import httpx

from libs.common.plans import load_plans
from services.gateway.metered import METERED
from tests.integration.gateway.conftest import SignedIn


async def test_every_operation_documents_its_refusals_and_credentials(user: SignedIn) -> None:
    document = (await user.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        if path.startswith("/health"):
            continue
        for operation in operations.values():
            assert {"401", "403", "404", "422", "429", "503"} <= operation["responses"].keys()
            assert "application/problem+json" in operation["responses"]["422"]["content"]
    assert document["paths"]["/v1/runs"]["post"]["security"] == [{"bearer": []}]
    assert not any(path.startswith("/internal") for path in document["paths"])


async def test_no_creating_route_forgets_its_limit(user: SignedIn) -> None:
    paths = (await user.client.get("/openapi.json")).json()["paths"]
    creating = {f"POST {path}": it["post"] for path, it in paths.items() if "post" in it}
    undeclared = [name for name, operation in creating.items() if "x-metered" not in operation]
    assert undeclared == [], "declare in services/gateway/metered.py what these routes take, or that they are UNMETERED"
    assert creating["POST /v1/runs"]["x-metered"] == {"metrics": ["runs", "tokens"], "features": []}
    assert creating["POST /v1/templates"]["x-metered"] == {"metrics": ["templates"], "features": []}
    described = {f"{method.upper()} {path}" for path, it in paths.items() for method in it}
    assert METERED.keys() <= described, "these routes do not exist any more"
    known = load_plans().meters.keys()
    assert {metric for it in METERED.values() for metric in (*it.takes, *it.metrics)} <= known


async def test_internal_routes_cannot_be_reached(anon: httpx.AsyncClient) -> None:
    for path in ("/internal/usage", "//internal/usage", "/%69nternal/usage", "/v1/../internal/usage", "/internal;x"):
        assert (await anon.get(path)).status_code in {401, 404}

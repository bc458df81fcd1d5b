"""The OpenAPI document tells what is really answered."""

import httpx

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


async def test_internal_routes_cannot_be_reached(anon: httpx.AsyncClient) -> None:
    for path in ("/internal/usage", "//internal/usage", "/%69nternal/usage", "/v1/../internal/usage", "/internal;x"):
        assert (await anon.get(path)).status_code in {401, 404}

"""The reviewed documents of the public surface: `python -m tests.contracts.documents [--write]`.

`passed.json`, which the gateway reads, is drawn from the services that answer passed routes; OpenAPI and AsyncAPI are
what the gateway then serves.
"""

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

import services
from libs.common.errors import ServiceTokenRefused, VentureError
from libs.common.health import health_router
from libs.common.http import create_app
from services.agents.atoms import api as atoms
from services.agents.background import api as background
from services.agents.prompts import api as prompts
from services.agents.runs import api as runs
from services.agents.templates import api as templates
from services.billing import api as billing
from services.billing import operator_api
from services.gateway.accounts.api import AccountRoutes
from services.gateway.admin.acts import ACTS, ActRoutes
from services.gateway.admin.api import AdminRoutes
from services.gateway.admin_users.api import AdminUserRoutes
from services.gateway.api_keys.api import ApiKeyRoutes
from services.gateway.auth.api import AuthRoutes
from services.gateway.auth.app import build_app
from services.gateway.auth.tokens import ApiKeys
from services.gateway.auth_admin.api import AuthAdminRoutes
from services.gateway.codes.api import CodeRoutes
from services.gateway.exports.api import ExportRoutes
from services.gateway.factors.api import FactorRoutes
from services.gateway.limited.api import LimitedRoutes
from services.gateway.openapi import describe
from services.gateway.passthrough import PASSED, PassedRoutes
from services.gateway.queues.api import QueueRoutes
from services.gateway.reference import domain
from services.gateway.reference.asyncapi import document as asyncapi
from services.gateway.runs.api import RunRoutes
from services.metering import api as metering
from services.metering.ingest.api import IngestRoutes
from services.metering.repairs.api import RepairRoutes
from services.metering.reports.api import ReportRoutes

ROOT: Final = Path(__file__).parents[2]
PASSED_FILE: Final = ROOT / "services/gateway/reference/passed.json"
OPENAPI_FILE: Final = ROOT / "tests/contracts/openapi.json"
ASYNCAPI_FILE: Final = ROOT / "tests/contracts/asyncapi.json"
VERSION: Final = "0.1.0"
_BEHIND: Final = (
    runs.Routes,
    prompts.Routes,
    templates.Routes,
    atoms.Routes,
    background.Routes,
    billing.Routes,
    operator_api.OperatorRoutes,
    metering.HoldRoutes,
    ReportRoutes,
    IngestRoutes,
    RepairRoutes,
)
# In the order in which wiring includes them.
_PUBLIC: Final = (
    AccountRoutes,
    ExportRoutes,
    PassedRoutes,
    RunRoutes,
    ApiKeyRoutes,
    AdminRoutes,
    ActRoutes,
    QueueRoutes,
    LimitedRoutes,
    AdminUserRoutes,
)
_SIGN_IN: Final = (AuthRoutes, CodeRoutes, AuthAdminRoutes, FactorRoutes)


def _bare(routes: type[Any]) -> Any:
    """Routes without anything behind them: enough to be described."""
    return object.__new__(routes)


def passed() -> dict[str, Any]:
    behind = FastAPI()
    for routes in _BEHIND:
        behind.include_router(_bare(routes).router())
    document = behind.openapi()
    found = {f"{method} {_shape(path)}": one for path, method, one in domain.operations(document)}
    ways = [
        *((one.method, one.path, one.internal) for one in PASSED),
        *((one.method, f"/v1/admin{one.path}", one.internal) for one in ACTS),
    ]
    taken = {
        f"{method} {path}": _part(found[f"{method.lower()} {_shape(internal)}"])
        for method, path, internal in ways
        if f"{method.lower()} {_shape(internal)}" in found
    }
    schemas = document.get("components", {}).get("schemas", {})
    return {"routes": taken, "schemas": dict(_referred(taken, schemas)), "codes": codes()}


def _shape(path: str) -> str:
    """The path with its ids nameless: the gateway calls them otherwise than the service does."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


def _part(operation: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    return {
        **({"parameters": parameters} if parameters else {}),
        **{part: operation[part] for part in ("requestBody", "description") if part in operation},
    }


def _referred(part: Any, schemas: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every schema that the part leads to."""
    wanted, seen = [part], set[str]()
    while wanted:
        text = json.dumps(wanted.pop())
        for name in schemas:
            if name not in seen and f'"#/components/schemas/{name}"' in text:
                seen.add(name)
                wanted.append(schemas[name])
                yield name, schemas[name]


_BETWEEN_SERVICES = ("events.", ServiceTokenRefused.code)


def codes() -> dict[str, str]:
    """Every public error code of every service, and the status it is answered with."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith((".main", ".wiring")):
            importlib.import_module(module.name)
    found: dict[str, str] = {}
    todo: list[type[VentureError]] = [VentureError]
    while todo:
        error = todo.pop()
        todo += error.__subclasses__()
        if str(error.status) in domain.REFUSALS and not error.code.startswith(_BETWEEN_SERVICES):
            found[error.code] = str(error.status)
    return dict(sorted({**found, "method_not_allowed": "405"}.items()))


def openapi() -> dict[str, Any]:
    app = create_app(title="Venture Companion gateway", version=VERSION)
    clock: Any = None
    app.include_router(health_router(environment="test", version=VERSION, clock=clock, checks=[]))
    for routes in _PUBLIC:
        app.include_router(_bare(routes).router())
    sign_in = build_app(
        ApiKeys(anon_key="", service_role_key="", secret=""), [_bare(one) for one in _SIGN_IN], version=VERSION
    )
    describe(app, auth=sign_in)
    return app.openapi()


def render(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def current() -> Iterator[tuple[Path, str]]:
    """Each file and what it should hold; the first is read for the second."""
    yield PASSED_FILE, render(passed())
    yield OPENAPI_FILE, render(openapi())
    yield ASYNCAPI_FILE, render(asyncapi(version=VERSION))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.contracts.documents", description="Compare API documents.")
    parser.add_argument("--write", action="store_true", help="write the documents anew; review what changed")
    is_writing = parser.parse_args().write
    differing = 0
    for file, text in current():
        if is_writing:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.stdout.write(f"{file.relative_to(ROOT)} is not what the code says.\n")
            differing += 1
    sys.stdout.write(f"API documents: {differing} findings.\n")
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())

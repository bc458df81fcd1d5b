"""The OpenAPI document made whole: what is answered, what passed routes take, and every refusal. Pure.

The framework knows what our own routes take. `answers.json` says by example what routes answer: a key that ends with
`?` may be null (and is, where the example says "none"), one that ends with `~` may be absent. `passed.json` is drawn
from the services that answer passed routes.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Final, cast

_HERE: Final = files("services.gateway.reference")
METHODS: Final = frozenset({"get", "put", "post", "patch", "delete"})
AUTH: Final = "/auth/v1"
PROBLEM_JSON: Final = "application/problem+json"

REFUSALS: Final[Mapping[str, str]] = {
    "400": "The request is not well formed.",
    "401": "Sign in: there is no valid access token or API key.",
    "403": "The account is banned, or the API key's scopes do not reach this.",
    "404": "There is nothing here, for this caller.",
    "409": "It is being worked on, or was changed meanwhile.",
    "413": "The body is larger than 1 MiB.",
    "415": "The body is of a kind not understood here.",
    "422": "A value is not acceptable; `errors` says where and why.",
    "429": "Too many requests, or a limit of the plan is reached.",
    "503": "Something is away, or the house is closed for maintenance.",
}
_MAINTENANCE: Final = {
    "type": "object",
    "required": ["error", "retryAfter"],
    "properties": {"error": {"type": "string"}, "retryAfter": {"type": "integer"}},
    "example": {"error": "Service temporarily unavailable for maintenance", "retryAfter": 3600},
}
_AUTH_REFUSAL: Final = {
    "type": "object",
    "required": ["code"],
    "properties": {
        "code": {"type": ["string", "integer"]},
        "message": {"type": "string"},
        "error_code": {"type": "string"},
        "msg": {"type": "string"},
        "weak_password": {"type": "object"},
    },
    "example": {"code": "invalid_credentials", "message": "Invalid login credentials"},
}
# Asked without signing in.
_OPEN: Final = ("/health", "/webhooks/", "/billing/webhook", "/v1/billing/plans")
Document = dict[str, Any]


def read(name: str) -> Any:
    return json.loads((_HERE / name).read_text(encoding="utf-8"))


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Document]]:
    """Path, method, operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield path, method, operation


def complete(document: Document, *, problem: Mapping[str, Any]) -> Document:
    """Fill in what the framework cannot know. Changes and returns the document."""
    components = document.setdefault("components", {})
    schemas: Document = components.setdefault("schemas", {})
    passed, answers = read("passed.json"), read("answers.json")
    schemas |= {**passed["schemas"], "Problem": dict(problem), "Refusal": _AUTH_REFUSAL, "Maintenance": _MAINTENANCE}
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token of /auth/v1, or an API key of /v1/api-keys.",
        },
        "apikey": {"type": "apiKey", "in": "header", "name": "apikey", "description": "The anon key of createClient."},
    }
    for path, method, operation in operations(document):
        name = f"{method.upper()} {path}"
        if name in passed["routes"]:
            _take_over(operation, passed["routes"][name])
        if name in answers:
            _answer(operation, name, answers)
        if not path.startswith("/health"):
            _refuse(operation, path, codes=passed["codes"], responses=components.setdefault("responses", {}))
            _ask_for_credentials(operation, path)
    return document


def _take_over(operation: Document, passed: Mapping[str, Any]) -> None:
    """What the service that answers the route takes, and what it says of itself."""
    known = {(one["name"], one["in"]) for one in operation.get("parameters", [])}
    more = [one for one in passed.get("parameters", []) if (one["name"], one["in"]) not in known]
    if more or known:
        operation["parameters"] = [*operation.get("parameters", []), *more]
    for part in ("requestBody", "description"):
        if part in passed:
            operation.setdefault(part, passed[part])


def _answer(operation: Document, name: str, answers: Mapping[str, Any]) -> None:
    said = answers[name]
    operation["responses"] = {
        str(said.get("status", 200)): _response(said, answers),
        **{
            other: {"description": "Done.", "content": _content(answers[of], answers)}
            for other, of in said.get("also_status", {}).items()
        },
    }
    if "request" in said and "requestBody" in operation:
        for media in operation["requestBody"]["content"].values():
            media["example"] = said["request"]


def _response(said: Mapping[str, Any], answers: Mapping[str, Any]) -> Document:
    response: Document = {"description": "Done."}
    content = _content(said, answers)
    return {**response, "content": content} if content else response


def _content(said: Mapping[str, Any], answers: Mapping[str, Any]) -> Document:
    if "same_as" in said:
        return _content(answers[said["same_as"]], answers)
    if "text" in said:
        return {said["media_type"]: {"schema": {"type": "string"}, "example": said["text"]}}
    example = said.get("example")
    if "list_of" in said:
        example = {"items": [answers[said["list_of"]]["example"]], "next_cursor?": "none"}
    if example is None:
        return {}
    also = {kind: {"schema": {"type": "string"}} for kind in said.get("also", [])}
    return {"application/json": {"schema": schema_of(example), "example": plain(example)}, **also}


def schema_of(example: Any) -> Document:
    """The schema that the example stands for; more members may always come."""
    if isinstance(example, dict):
        members = cast("dict[str, Any]", example)
        return {
            "type": "object",
            "properties": {_name(key): _nullable(key, schema_of(value)) for key, value in members.items()},
            "required": [_name(key) for key in members if "~" not in key],
        }
    if isinstance(example, list):
        items = cast("list[Any]", example)
        return {"type": "array", "items": schema_of(items[0])} if items and items[0] != {} else {"type": "array"}
    kinds: list[tuple[type, str]] = [(bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")]
    return {"type": next(name for kind, name in kinds if isinstance(example, kind))}


def plain(example: Any) -> Any:
    """The example without the marks on its keys."""
    if isinstance(example, dict):
        members = cast("dict[str, Any]", example)
        return {_name(key): None if value == "none" else plain(value) for key, value in members.items()}
    if isinstance(example, list):
        return [plain(value) for value in cast("list[Any]", example)]
    return example


def _name(key: str) -> str:
    return key.rstrip("?~")


def _nullable(key: str, schema: Document) -> Document:
    return {**schema, "type": [schema["type"], "null"]} if "?" in key else schema


def _refuse(operation: Document, path: str, *, codes: Mapping[str, str], responses: Document) -> None:
    """Every refusal there may be, with its codes: the gateway's, those of the service behind, and the common ones."""
    kind = "auth" if path.startswith(AUTH) else next(iter(operation.get("tags", [])), "gateway")
    for status, description in REFUSALS.items():
        name = f"{kind}-{status}"
        if name not in responses:
            content = _auth_refusal(status) if kind == "auth" else _problems(status, kind, codes)
            responses[name] = {"description": description, "content": content}
        operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}


def _auth_refusal(status: str) -> Document:
    names = ("Refusal", "Maintenance") if status == "503" else ("Refusal",)
    return {"application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}}}


def _problems(status: str, kind: str, codes: Mapping[str, str]) -> Document:
    here = [code for code, at in codes.items() if at == status and code.rpartition(".")[0] in {"", "gateway", kind}]
    examples = {code: {"value": _problem(status, code, REFUSALS[status])} for code in here}
    content: Document = {
        PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples},
    }
    if status == "503":
        content["application/json"] = {"schema": {"$ref": "#/components/schemas/Maintenance"}}
    return content


def _problem(status: str, code: str, description: str) -> Document:
    return {
        "type": "about:blank",
        "title": description.rstrip("."),
        "status": int(status),
        "code": code,
        "detail": description,
        "trace_id": None,
    }


def _ask_for_credentials(operation: Document, path: str) -> None:
    if path.startswith(AUTH):
        operation["security"] = [{"apikey": []}, {"apikey": [], "bearer": []}]
    elif not path.startswith(_OPEN):
        operation["security"] = [{"bearer": []}]

"""Request parameters: bracket notation in, typed values out, and the API's own words for what is wrong."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import parse_qsl

from devkit.stripe.errors import ApiError, Json


def parse_form(text: str) -> Json:
    """Turn `a[b][0]=x` pairs into nested dicts; lists stay dicts keyed by index until a reader asks for one."""
    tree: Json = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        _plant(tree, _split(name), value)
    return tree


def from_json(value: object) -> Any:
    """Bring a decoded JSON body into the same form as `parse_form` gives."""
    if isinstance(value, dict):
        return {str(key): from_json(item) for key, item in cast("dict[object, object]", value).items()}
    if isinstance(value, list):
        return {str(index): from_json(item) for index, item in enumerate(cast("list[object]", value))}
    return value


def _split(name: str) -> list[str]:
    head, bracket, rest = name.partition("[")
    return [head, *rest.removesuffix("]").split("][")] if bracket else [head]


def _plant(tree: Json, path: list[str], value: str) -> None:
    for step in path[:-1]:
        below = tree.setdefault(step or str(len(tree)), {})
        if not isinstance(below, dict):
            raise ApiError.invalid(f"Invalid hash: {path[0]}", param=path[0])
        tree = cast("Json", below)
    tree[path[-1] or str(len(tree))] = value


class Params:
    """The parameters of a call, or a nested part of them; `path` is the name errors give to that part."""

    def __init__(self, tree: Mapping[str, Any], path: str = "") -> None:
        self.tree = tree
        self.path = path

    def name(self, key: str) -> str:
        return f"{self.path}[{key}]" if self.path else key

    def __contains__(self, key: str) -> bool:
        return key in self.tree

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree)

    def only(self, known: Iterable[str]) -> None:
        """Refuse a parameter the API does not have, as the API does: a typing error must not pass silently."""
        unknown = sorted(set(self.tree) - set(known) - {"expand"})
        if unknown:
            name = self.name(unknown[0])
            raise ApiError.invalid(f"Received unknown parameter: {name}", param=name, code="parameter_unknown")

    def text(self, key: str) -> str | None:
        """The value as text; None when absent or empty (the API's way to unset a field)."""
        value = self.tree.get(key)
        if isinstance(value, dict):
            raise ApiError.invalid(f"Invalid string: {self.name(key)}", param=self.name(key))
        return None if value is None or value == "" else str(value)

    def need(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise ApiError.missing_param(self.name(key))
        return value

    def choice(self, key: str, allowed: Iterable[str], default: str | None = None) -> str | None:
        value = self.text(key)
        known = list(allowed)
        if value is not None and value not in known:
            names = ", ".join(known)
            raise ApiError.invalid(f"Invalid {self.name(key)}: must be one of {names}", param=self.name(key))
        return default if value is None else value

    def number(self, key: str) -> int | None:
        value = self.text(key)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError as error:
            raise ApiError.invalid(
                f"Invalid integer: {value}", param=self.name(key), code="parameter_invalid_integer"
            ) from error

    def flag(self, key: str) -> bool | None:
        value = self.text(key)
        if value is None:
            return None
        if value.lower() not in {"true", "false"}:
            raise ApiError.invalid(f"Invalid boolean: {value}", param=self.name(key))
        return value.lower() == "true"

    def part(self, key: str) -> "Params":
        """The nested parameters under `key`; empty when absent or unset."""
        value = self.tree.get(key)
        return Params(cast("Json", value) if isinstance(value, dict) else {}, self.name(key))

    def parts(self, key: str) -> list["Params"]:
        """A list of nested parameters, in index order."""
        below = self.part(key)
        return [below.part(index) for index in _in_order(below.tree)]

    def texts(self, key: str) -> list[str]:
        below = self.part(key)
        return [str(below.tree[index]) for index in _in_order(below.tree)]

    def plain(self, key: str) -> Any:
        """The value with index-keyed dicts turned into lists, for fields that are stored as they came."""
        return _listed(self.tree.get(key))


def _in_order(tree: Mapping[str, Any]) -> list[str]:
    return sorted(tree, key=lambda index: int(index) if index.isdigit() else 0)


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tree = cast("Json", value)
    if tree and all(key.isdigit() for key in tree):
        return [_listed(tree[key]) for key in _in_order(tree)]
    return {key: _listed(item) for key, item in tree.items()}


def merge_metadata(current: Mapping[str, str], params: Params) -> dict[str, str]:
    """Apply `metadata` of a call: keys are merged, an empty value removes a key, an empty whole removes all."""
    if params.tree.get("metadata") == "":
        return {}
    given = {key: str(value) for key, value in params.part("metadata").tree.items()}
    return {key: value for key, value in {**current, **given}.items() if value != ""}

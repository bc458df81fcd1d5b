"""How objects leave the emulator: own fields stripped, `expand` resolved, lists cut into pages."""

from collections.abc import Callable
from typing import Any, cast

from devkit.stripe.errors import ApiError, Json
from devkit.stripe.world import Call, World, copied, visible

Include = Callable[[World, Json], Any]
DEEPEST_EXPANSION = 4
MOST_PER_PAGE = 100


def render(world: World, body: Json, call: Call, includes: dict[tuple[str, str], Include]) -> Json:
    """The answer as the caller asked for it. `includes` builds the fields that exist only when expanded."""
    answer = visible(body)
    for path in call.params.texts("expand"):
        steps = path.split(".")
        if len(steps) > DEEPEST_EXPANSION + 1:
            raise ApiError.invalid("You cannot expand more than 4 levels of a property", param="expand")
        _expand(world, answer, steps, path, includes)
    return answer


def _expand(world: World, node: Any, steps: list[str], path: str, includes: dict[tuple[str, str], Include]) -> None:
    if isinstance(node, list):
        for item in cast("list[Any]", node):
            _expand(world, item, steps, path, includes)
        return
    if not isinstance(node, dict) or not steps:
        return
    holder = cast("Json", node)
    field, rest = steps[0], steps[1:]
    if field not in holder:
        include = includes.get((str(holder.get("object")), field))
        if include is None:
            raise ApiError.invalid(f"This property cannot be expanded ({path}).", param="expand[0]")
        held = world.store.find(str(holder["id"]))
        holder[field] = visible({"value": include(world, held or holder)})["value"]
    elif isinstance(holder[field], str):
        holder[field] = _fetched(world, holder[field], path)
    elif isinstance(holder[field], list) and all(isinstance(item, str) for item in cast("list[Any]", holder[field])):
        holder[field] = [_fetched(world, item, path) for item in cast("list[str]", holder[field])]
    _expand(world, holder[field], rest, path, includes)


def _fetched(world: World, object_id: str, path: str) -> Json:
    found = world.store.find(object_id)
    if found is None:
        raise ApiError.invalid(f"This property cannot be expanded ({path}).", param="expand[0]")
    return visible(found)


def page(
    world: World, call: Call, kind: str, *, owner: str | None = None, keep: Callable[[Json], bool] | None = None
) -> Json:
    """A page of a list, newest first, by `limit`, `starting_after` or `ending_before`, and `created`."""
    params = call.params
    given = params.number("limit")
    limit = 10 if given is None else given
    if not 1 <= limit <= MOST_PER_PAGE:
        raise ApiError.invalid(
            f"This value must be between 1 and {MOST_PER_PAGE}.", param="limit", code="parameter_invalid_integer"
        )
    in_time = created_filter(call)
    above = _cursor(world, call, kind, "ending_before")
    rows = (
        world.store.oldest_first(kind, owner=owner, above=above)
        if above is not None
        else world.store.newest_first(kind, owner=owner, below=_cursor(world, call, kind, "starting_after"))
    )
    found: list[Json] = []
    for body in rows:
        if in_time(body) and (keep is None or keep(body)):
            found.append(body)
            if len(found) > limit:
                break
    shown = found[:limit]
    if above is not None:
        shown.reverse()
    return {"object": "list", "data": shown, "has_more": len(found) > limit, "url": call.path}


def _cursor(world: World, call: Call, kind: str, name: str) -> int | None:
    cursor = call.params.text(name)
    if cursor is None:
        return None
    position = world.store.position(cursor, kind)
    if position is None:
        raise ApiError.not_found(kind.rpartition(".")[2], cursor, param=name, status=400)
    return position


def created_filter(call: Call) -> Callable[[Json], bool]:
    """The test that `created=...` or `created[gte]=...` asks for."""
    params = call.params
    if isinstance(params.tree.get("created"), dict):
        bounds = params.part("created")
        bounds.only({"gt", "gte", "lt", "lte"})
        gt, gte, lt, lte = (bounds.number(name) for name in ("gt", "gte", "lt", "lte"))

        def within(body: Json) -> bool:
            at = cast("int", body["created"])
            return (
                (gt is None or at > gt)
                and (gte is None or at >= gte)
                and (lt is None or at < lt)
                and (lte is None or at <= lte)
            )

        return within
    exact = params.number("created")
    return lambda body: exact is None or body["created"] == exact


def list_of(items: list[Json], url: str) -> Json:
    """A complete list held inside another object."""
    return {"object": "list", "data": items, "has_more": False, "total_count": len(items), "url": url}


def search_page(world: World, call: Call, kind: str) -> Json:
    """A small part of the search language: `field:"value"` and `metadata["key"]:"value"`, joined by AND."""
    wanted: list[tuple[str, str]] = []
    for clause in call.params.need("query").split(" AND "):
        field, colon, value = clause.partition(":")
        if not colon:
            raise ApiError.invalid("We were unable to parse your search query.", param="query")
        wanted.append((field.strip(), value.strip().strip("\"'")))
    matches = [body for body in world.store.newest_first(kind) if all(_has(body, *want) for want in wanted)]
    limit = call.params.number("limit") or 10
    start = int(call.params.text("page") or 0)
    rest = start + limit < len(matches)
    return {
        "object": "search_result",
        "data": [copied(body) for body in matches[start : start + limit]],
        "has_more": rest,
        "next_page": str(start + limit) if rest else None,
        "url": call.path,
    }


def _has(body: Json, field: str, value: str) -> bool:
    if field.startswith("metadata["):
        return cast("Json", body.get("metadata") or {}).get(field[9:].strip("]\"'")) == value
    return str(body.get(field)) == value


LIST_PARAMS = ("limit", "starting_after", "ending_before", "created")

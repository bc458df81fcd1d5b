"""The rules about Python: who may import what, read the clock or the environment, and what importing may do."""

import ast
from collections.abc import Callable, Iterator
from typing import Final

from ops.house_rules.source import Finding, Source, dotted
from ops.house_rules.sql import explained_locks, listed_columns

Rule = Callable[[Source], Iterator[Finding]]

MAX_MODULE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 50

_ENVIRONMENT: Final = ("environ", "environb", "getenv", "putenv")
_STARTS_PROCESSES: Final = ("ops", "tests/harness", "tests/e2e", "tests/faults", "bench")
_CLOCKS: Final = ("libs/common/clock.py", "devkit/clock.py")
_NOW: Final = frozenset({"datetime.now", "datetime.utcnow", "datetime.today", "date.today"})
_BUILDERS: Final = frozenset(
    {
        *("FastAPI", "Starlette", "APIRouter", "create_app", "Typer", "Settings"),
        *("AsyncClient", "Client", "Session", "StripeClient", "Redis", "AsyncExitStack"),
        *("connect", "connect_robust", "create_pool", "create_engine", "from_url", "open"),
        *("build", "load", "load_plans", "load_settings"),
    }
)


def broker_driver(source: Source) -> Iterator[Finding]:
    """RabbitMQ's driver is known to one package, which knows its traps."""
    if source.is_in("libs/common/broker") or source.is_test:
        return
    for node, module in source.imports():
        if module.partition(".")[0] in {"aio_pika", "aiormq"}:
            yield source.finding(node, "broker-driver", "only libs/common/broker imports RabbitMQ's driver")


def stripe_sdk(source: Source) -> Iterator[Finding]:
    """Stripe's SDK is known to billing's adapter; its module-wide key is known to nobody."""
    for node, module in source.imports():
        if module.partition(".")[0] == "stripe" and not _may_import_stripe(source):
            yield source.finding(node, "stripe-sdk", "only services/billing/stripe_*.py imports Stripe's SDK")
    for node in ast.walk(source.tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(dotted(target).startswith("stripe.") for target in targets):
            yield source.finding(node, "stripe-sdk", "settings of the SDK belong to a client, not to its module")


def _may_import_stripe(source: Source) -> bool:
    return source.path.startswith("services/billing/stripe_") or source.is_in("devkit") or source.is_test


def environment(source: Source) -> Iterator[Finding]:
    """The environment is read in settings.py, and by whoever starts processes and hands it on to them."""
    if source.path.endswith("/settings.py") or source.is_in(*_STARTS_PROCESSES):
        return
    for node in ast.walk(source.tree):
        if any(dotted(node) == f"os.{name}" or _is_import_from(node, "os", name) for name in _ENVIRONMENT):
            yield source.finding(node, "environment", "only settings.py and ops/ read the environment")


def wall_clock(source: Source) -> Iterator[Finding]:
    """The wall clock is read in one place, so that tests can hand in another."""
    if source.path in _CLOCKS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ".".join(dotted(node).split(".")[-2:]) in _NOW:
            yield source.finding(node, "wall-clock", "take the time from a Clock, or from the database")


def broad_except(source: Source) -> Iterator[Finding]:
    """Only an edge, which tells the error to somebody, may catch whatever comes; others translate or clean up."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises(node):
            yield source.finding(node, "broad-except", "catches everything and does not raise; only edges may")
        if isinstance(node, ast.Call) and _suppresses_everything(node):
            yield source.finding(node, "broad-except", "suppresses everything")


def _suppresses_everything(call: ast.Call) -> bool:
    return dotted(call.func) in {"suppress", "contextlib.suppress"} and any(_is_broad(it) for it in call.args)


def _is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(_is_broad(it) for it in caught.elts)
    return caught is None or dotted(caught) in {"Exception", "BaseException"}


def _raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def quiet_import(source: Source) -> Iterator[Finding]:
    """Importing a module does nothing: no client, no application, no settings, no work."""
    if source.is_test:
        return
    for statement in _module_level(source.tree.body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call | ast.Await):
            yield source.finding(statement, "quiet-import", "importing this module does something")
        if isinstance(statement, ast.For | ast.While | ast.With | ast.Try):
            yield source.finding(statement, "quiet-import", "importing this module works through something")
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for call in ast.walk(statement.value):
                if isinstance(call, ast.Call) and _builds(call):
                    yield source.finding(call, "quiet-import", f"{dotted(call.func)}() runs when this is imported")


def _module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements an import runs: of the module, of its classes, and of its conditions but `__name__ == "__main__"`."""
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _module_level(statement.body)
        elif isinstance(statement, ast.If):
            if "__name__" not in ast.dump(statement.test):
                yield from _module_level([*statement.body, *statement.orelse])
        else:
            yield statement


def _builds(call: ast.Call) -> bool:
    name = dotted(call.func).rpartition(".")[2]
    return name in _BUILDERS or name.endswith("Settings")


def module_size(source: Source) -> Iterator[Finding]:
    """A module that has grown too long is split by noun."""
    lines = source.text.count("\n")
    if lines > MAX_MODULE_LINES:
        yield source.finding(source.tree, "module-size", f"{lines} lines; {MAX_MODULE_LINES} at most")


def function_size(source: Source) -> Iterator[Finding]:
    """A function fits on one screen."""
    for function in source.functions:
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            message = f"{function.name} has {lines} lines; {MAX_FUNCTION_LINES} at most"
            yield source.finding(function, "function-size", message, subject=function.name)


def lost_cancellation(source: Source) -> Iterator[Finding]:
    """Python 3.11's `asyncio.wait_for` may swallow a cancellation: a loop built on it does not always end."""
    if source.is_test:
        return
    for node in ast.walk(source.tree):
        if dotted(node) == "asyncio.wait_for" or _is_import_from(node, "asyncio", "wait_for"):
            yield source.finding(node, "lost-cancellation", "use asyncio.timeout, or libs.common.waiting")


def no_patching(source: Source) -> Iterator[Finding]:
    """Doubles are handed in through `build`; nothing is replaced behind the code's back."""
    for node, module in source.imports():
        if module in {"mock", "unittest.mock", "pytest_mock"} or _is_import_from(node, "unittest", "mock"):
            yield source.finding(node, "no-patching", "hand a Fake in through build instead")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and dotted(node.func).endswith("monkeypatch.setattr"):
            yield source.finding(node, "no-patching", "hand a Fake in through build instead")


def no_sleep_in_tests(source: Source) -> Iterator[Finding]:
    """Tests wait for an outcome, not for a while. In tests/faults a pause is the schedule of the faults."""
    if not source.is_in("tests") or source.is_in("tests/faults"):
        return
    for node in ast.walk(source.tree):
        is_imported = _is_import_from(node, "time", "sleep") or _is_import_from(node, "asyncio", "sleep")
        if is_imported or dotted(node) in {"time.sleep", "asyncio.sleep"}:
            function = source.innermost_function(getattr(node, "lineno", 0))
            subject = function.name if function is not None else ""
            yield source.finding(node, "no-sleep-in-tests", "wait with eventually(...)", subject=subject)


def _is_import_from(node: ast.AST, module: str, name: str) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == module and any(it.name == name for it in node.names)


RULES: Final[tuple[Rule, ...]] = (
    broker_driver,
    stripe_sdk,
    environment,
    wall_clock,
    broad_except,
    quiet_import,
    explained_locks,
    listed_columns,
    module_size,
    function_size,
    lost_cancellation,
    no_patching,
    no_sleep_in_tests,
)

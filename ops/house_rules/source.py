"""What rules look at: one file, parsed once, with its comments; and what they say of it."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place that breaks a rule. `subject` is what an exception is granted to: a function's name, or nothing."""

    path: str
    line: int
    rule: str
    message: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


class Source:
    """A Python file. `path` is relative to the project, with slashes, because rules go by where a file lies."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.tree = ast.parse(text, filename=path)

    def is_in(self, *folders: str) -> bool:
        return self.path.startswith(tuple(f"{folder}/" for folder in folders))

    @property
    def is_test(self) -> bool:
        return self.is_in("tests", "bench")

    def finding(self, node: ast.AST, rule: str, message: str, *, subject: str = "") -> Finding:
        line: int = getattr(node, "lineno", 1)
        return Finding(path=self.path, line=line, rule=rule, message=message, subject=subject)

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def comments(self) -> Mapping[int, str]:
        """Text of the `#` comments by line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    @cached_property
    def bare_strings(self) -> set[ast.expr]:
        """Docstrings, and strings that stand alone below a name to explain it: prose, not SQL."""
        return {node.value for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}

    def innermost_function(self, line: int) -> Function | None:
        around = [it for it in self.functions if it.lineno <= line <= (it.end_lineno or it.lineno)]
        return max(around, key=lambda it: it.lineno, default=None)

    def imports(self) -> Iterator[tuple[ast.AST, str]]:
        """Every absolute import at any depth with the module it names."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node, node.module


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""

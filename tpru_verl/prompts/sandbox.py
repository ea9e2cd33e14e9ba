"""A Jinja environment for templates of others: no access to Python, and bounds on size and time.

A template is text with variables, conditions and short loops. It has the filters in FILTERS, the methods of
text in METHODS and `range`, and no macros, blocks or other files. All else raises a TemplateError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_TEMPLATE", "compiled", "rendered"]

MAX_CHARACTERS = 1_000_000  # of a prompt, and of each text that its template computes
MAX_TEMPLATE = 100_000  # characters of a template
MAX_ITEMS = 200_000  # of lists in lists, and characters in them
MAX_ROUNDS = 100  # of a loop
MAX_BITS = 10_000  # of a number
FILTERS = frozenset(
    {"trim", "lower", "upper", "capitalize", "title", "default", "d", "length", "count", "first", "last"}
    | {"list", "string", "int", "float", "abs", "round", "reverse", "sort", "unique", "striptags"}
    | {"wordcount"}
)
METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "lower", "upper", "capitalize", "title", "startswith", "endswith", "split"}
    | {"splitlines", "partition", "count", "find", "removeprefix", "removesuffix", "isdigit", "isalpha"}
)
_REFUSED = {
    nodes.Macro: "a macro",
    nodes.CallBlock: "a call block",
    nodes.AssignBlock: "a set block",
    nodes.Block: "a block",
    nodes.Include: "an include",
    nodes.Import: "an import",
    nodes.FromImport: "an import",
    nodes.Extends: "an extends",
}


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.globals = {"range": safe_range}
        self.filters = {name: function for name, function in self.filters.items() if name in FILTERS}
        self.filters |= {"replace": _replaced, "join": _joined, "rounds": _rounds, "bounded": _bounded}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("found text % values, expected the text itself")
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _check(len(left) + len(right))
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str) and isinstance(times, int):
                    _check(len(many) * times)
                if isinstance(many, list | tuple) and isinstance(times, int):
                    _bounded(many, times)
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError(f"found a number of more than {MAX_BITS:,} bits")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name = getattr(__obj, "__name__", type(__obj).__name__)
        if __obj is not safe_range and not (
            isinstance(getattr(__obj, "__self__", None), str) and name in METHODS
        ):
            raise SecurityError(
                f"found a call of {name}, expected range or one of {', '.join(sorted(METHODS))}"
            )
        return super().call(__context, __obj, *args, **kwargs)


def _check(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"found more than {MAX_CHARACTERS:,} characters")


def _bounded(value: Any, times: int = 1) -> Any:
    """The value itself; raises SecurityError for a list that would be too long as a text."""
    if isinstance(value, str):
        return value
    left, inner = MAX_ITEMS // max(1, times), [value]
    while inner:
        one = inner.pop()
        if isinstance(one, dict):
            one = [*one.keys(), *one.values()]
        left -= len(one) if isinstance(one, str | list | tuple) else 1
        if left < 0:
            raise SecurityError(f"found a list of more than {MAX_ITEMS:,} items and characters")
        if isinstance(one, list | tuple):
            inner += one
    return value


def _replaced(text: Any, old: str, new: str) -> str:
    text = str(text)
    _check(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _joined(items: Iterable[Any], between: str = "") -> str:
    texts = [str(item) for item in items]
    _check(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


def _rounds(items: Iterable[Any]) -> Iterator[Any]:
    for done, item in enumerate(items):
        if done == MAX_ROUNDS:
            raise SecurityError(f"found a loop of more than {MAX_ROUNDS} rounds")
        yield item


class _Sums(NodeTransformer):
    """Makes of `a ~ b` a sum of texts, whose size is checked, and checks that of lists in lists."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        first, *others = [_filtered(part, "string") for part in node.nodes]
        total: nodes.Expr = first
        for text in others:
            total = nodes.Add(total, text, lineno=node.lineno)
        return total

    def _literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "bounded")

    visit_List = visit_Dict = visit_Tuple = _literal  # noqa: N815


def _filtered(value: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, value), name, [], [], None, None, lineno=value.lineno)


def compiled(source: str) -> Template:
    """The template in `source`. Raises TemplateError for its syntax, and for parts that are refused."""
    environment = _Environment()
    if len(source) > MAX_TEMPLATE:
        raise TemplateError(f"found more than {MAX_TEMPLATE:,} characters")
    tree = environment.parse(source)
    for kind, name in _REFUSED.items():
        if found := tree.find(kind):
            raise TemplateError(f"line {found.lineno}: found {name}, expected text, conditions and loops")
    for loop in tree.find_all(nodes.For):
        inner = [deep for deep in loop.find_all(nodes.For) if deep is not loop]
        if loop.recursive or any(deep.find(nodes.For) for deep in inner):
            raise TemplateError(f"line {loop.lineno}: found loops in loops in a loop, expected two at most")
    for loop in tree.find_all(nodes.For):
        loop.iter = _filtered(loop.iter, "rounds")
    return environment.from_string(_Sums().visit(tree))


def rendered(template: Template, **values: object) -> str:
    """The text of a template. Raises what its expressions raise, TemplateError where it is too long."""
    parts: list[str] = []
    size = 0
    for part in template.generate(**values):
        size += len(part)
        _check(size)
        parts.append(part)
    return "".join(parts)

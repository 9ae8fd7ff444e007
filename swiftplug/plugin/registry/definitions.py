"""What a plugin says about itself: documentation and options, read in its source without importing anything.

Only where the source does not say (a decorator that changes a function, a base class of an unknown module) is it
imported.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from inspect import Parameter
from typing import Any, NamedTuple, TypeGuard

from swiftplug.formatting import printable
from swiftplug.plugin.registry.contracts import CONTRACTS, Call
from swiftplug.plugin.registry.declared import DeclaredOptions, declared_options, options_among
from swiftplug.plugin.registry.errors import MissingExtraError, describe_error
from swiftplug.plugin.registry.finder import FoundPlugin
from swiftplug.plugin.registry.summaries import origin_of, read_source
from swiftplug.plugin.rewards import ORM
from swiftplug.plugin.task import Rows

_MAX_HOPS = 3
_HARMLESS = ("register_", "staticmethod", "classmethod")  # decorators that leave the signature as it is
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_BOUNDED = {
    f"{name}{kind.title()}": f"{kind} {bound} 0"
    for name, bound in (("Positive", ">"), ("NonNegative", ">="), ("Negative", "<"), ("NonPositive", "<="))
    for kind in ("int", "float")
}  # names of pydantic
_SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|References|Yields):\s*$")
_ITEM = re.compile(r"\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*)")
_FIXED_LINE = re.compile(r"\s*([-*•]|\d+[.)]|>>>|\.\.\.|\|) ?|\s{4,}")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Expression(str):
    """A default that is no plain value, as its source text."""

    __slots__ = ()


class Option(NamedTuple):
    """An option of a plugin.

    Attributes:
        name: Its name.
        type: Its type as text, such as `float >= 0`; empty if it is not annotated.
        required: Whether it has no default.
        default: The default: a plain value, or an `Expression`.
        help: What it means; empty if the documentation does not say.
    """

    name: str
    type: str
    required: bool
    default: Any
    help: str


class Description(NamedTuple):
    """What is known of a plugin.

    Attributes:
        documentation: Its docstring as paragraphs, without the sections about parameters, errors and examples.
        options: Its options.
        any_other: What is said of further options, if it takes any; else None.
        broken: Why its options are not known, in one line; empty if they are.
        needs: The extra that is not installed, and how to install it; empty if nothing is missing.
        rows: Of a task, the rows that it reads; else empty.
        kinds: Of a task, the kinds of plugin that act in some tasks only and do in this one; else empty.
        follows: Of an engine, whether it can draw from a model in training.
    """

    documentation: str = ""
    options: tuple[Option, ...] = ()
    any_other: str | None = None
    broken: str = ""
    needs: str = ""
    rows: str = ""
    kinds: frozenset[str] = frozenset()
    follows: bool = False


class _NotInSourceError(Exception):
    """The source text alone does not say."""


class _Definition(NamedTuple):
    """What a name stands for: a class, a function or the value of an assignment; its docstring, and its class's."""

    module: str
    node: ast.AST
    documentation: str
    of_class: str = ""


def describe(found: FoundPlugin) -> Description:
    """Describe a plugin; it is imported only if its source does not say what its options are."""
    try:
        described = _read(found)
    except (_NotInSourceError, RecursionError):
        described = _imported(found)
    try:
        found.check_extras()
    except MissingExtraError as missing:
        described = described._replace(needs=str(missing), broken="")
    return described


def read_options(found: FoundPlugin) -> tuple[Option, ...]:
    """The options of a plugin as far as its source says them; it is never imported."""
    try:
        return _read(found).options
    except (_NotInSourceError, RecursionError):
        return ()


def _read(found: FoundPlugin) -> Description:
    """The description by the source alone."""
    module, _, path = found.value.rpartition(":")
    outer, *inner = path.split(".")
    definition = _find(module, outer)
    for name in inner:
        definition = _member(definition, name)
    node, own = definition.node, definition.documentation
    function: _Definition | None = definition
    call, constructed = CONTRACTS[found.kind].get("__call__", Call()), False
    if found.kind == "tuner":
        function, call = _method(definition, "prepare_model"), CONTRACTS["tuner"]["prepare_model"]
    elif isinstance(node, ast.ClassDef):
        function, call, constructed = _method(definition, "__init__"), Call(("self",)), True
    elif isinstance(node, ast.Tuple):  # a metric
        function = None
    elif isinstance(node, ast.Call):  # if it makes an instance of a class, that takes no options
        made = _find(definition.module, ast.unparse(node.func))
        if not isinstance(made.node, ast.ClassDef):
            raise _NotInSourceError(ast.unparse(node))
        own, function = own or made.documentation, None
    parameters = list(_parameters(function)) if function else []
    declared = options_among(parameters, found.kind, call, constructed=constructed)
    of_function = (function.of_class, function.documentation) if function else ()
    described = _described(declared, parameters, own, *of_function)
    if found.kind == "engine":
        return described._replace(follows=_attribute(definition, "follows"))
    if found.kind == "task":
        return described._replace(rows=_attribute(definition, "rows"), kinds=frozenset(_attribute(definition, "kinds")))
    return described


def _imported(found: FoundPlugin) -> Description:
    """The description by the object itself."""
    try:
        plugin = found.load()
        declared = declared_options(found.kind, plugin)
    except MissingExtraError:
        return Description(found.summary or "")
    except (Exception, SystemExit) as error:
        return Description(found.summary or "", broken=describe_error(error))
    function = plugin.prepare_model if found.kind == "tuner" else plugin.__init__ if inspect.isclass(plugin) else plugin
    parameters = []
    with suppress(TypeError, ValueError):  # an instance, or a function that is written in C
        parameters = list(inspect.signature(function).parameters.values())
    own = plugin if inspect.isclass(plugin) or inspect.isroutine(plugin) else type(plugin)
    texts = "" if isinstance(plugin, tuple) else inspect.getdoc(own) or "", inspect.getdoc(function) or ""
    described = _described(declared, parameters, *texts)
    if found.kind == "engine":
        return described._replace(follows=bool(getattr(plugin, "follows", False)))
    if found.kind == "task":
        return described._replace(rows=str(getattr(plugin, "rows", "")), kinds=frozenset(getattr(plugin, "kinds", ())))
    return described


def _described(declared: DeclaredOptions, parameters: Iterable[Parameter], *docstrings: str) -> Description:
    """The description by the declared options, and by the docstrings, of which the first is the plugin's own."""
    text = parse_docstring(docstrings[0])[0]
    helps = {name: help for docstring in docstrings for name, help in parse_docstring(docstring)[1].items()}
    others = next((each.name for each in parameters if each.kind is Parameter.VAR_KEYWORD), "")
    options = (
        Option(
            name,
            parameter.annotation if isinstance(parameter.annotation, str) else _type_of(parameter.annotation),
            parameter.default is Parameter.empty,
            None if parameter.default is Parameter.empty else _plain(parameter.default),
            helps.get(name, ""),
        )
        for name, parameter in declared.named.items()
    )
    return Description(text, tuple(options), helps.get(others, "") if declared.any_other else None)


def _plain(value: Any) -> Any:
    """A default as JSON has it, or else as text."""
    if isinstance(value, Expression):
        return value
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return Expression(repr(value))


def parse_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring in the style of Google.

    Returns:
        The text before and between its sections, a line for each paragraph or item of a list; and what the section
        `Args` says of each parameter.
    """
    text: list[str] = []
    args: list[str] = []
    section = ""
    for line in printable(inspect.cleandoc(docstring)).splitlines():
        if header := _SECTION.match(line):
            section = header[1]
        elif line[:1].strip():
            section = ""
        if not section:
            text.append(line)
        elif section.startswith("Arg") and not header:
            args.append(line)
    helps: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n".join(["", *args])).splitlines():
        if line[:1].strip() and (item := _ITEM.match(line)):
            name, helps[item[1]] = item[1], item[2]
        elif name:
            helps[name] = f"{helps[name]} {line.strip()}".strip()
    return "\n".join(_joined(text)).strip(), helps


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """Lines with those joined that only the width of the page has parted."""
    held = ""
    for line in lines:
        if held and line.strip() and not _FIXED_LINE.match(line):
            held = f"{held} {line.strip()}"
            continue
        if held:
            yield held
        held = line.rstrip()
        if not held:
            yield ""
    yield held


@cache
def _tree(module: str) -> ast.Module:
    file, text = read_source(module)
    if file is None:
        raise _NotInSourceError(module)
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise _NotInSourceError(module) from error


def _find(module: str, name: str, hops: int = _MAX_HOPS) -> _Definition:
    """What a module calls `name`, there or in the module that it imports it from."""
    tree = _tree(module)
    if found := _defined(module, tree.body, name):
        return found
    for node in ast.walk(tree) if hops else ():
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(origin_of(module, node.level, node.module or ""), alias.name, hops - 1)
    raise _NotInSourceError(f"{module}:{name}")


def _defined(module: str, body: list[ast.stmt], name: str) -> _Definition | None:
    """The definition of `name` among statements."""
    for index, node in enumerate(body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            if not all(ast.unparse(each).rpartition(".")[2].startswith(_HARMLESS) for each in node.decorator_list):
                raise _NotInSourceError(f"{module}:{name} is decorated")
            return _Definition(module, node, ast.get_docstring(node) or "")
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                below = body[index + 1] if index + 1 < len(body) else None
                documentation = str(ast.literal_eval(below.value)) if _is_text(below) else ""
                if not isinstance(node.value, ast.Name):
                    return _Definition(module, node.value, documentation)
                same = _find(module, node.value.id)
                return same._replace(documentation=documentation) if documentation else same
    return None


def _is_text(node: ast.stmt | None) -> TypeGuard[ast.Expr]:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _member(definition: _Definition, name: str) -> _Definition:
    """What a class calls `name`, in its own body or in that of a base class."""
    if not isinstance(definition.node, ast.ClassDef):
        raise _NotInSourceError(name)
    if (definition.module, definition.node.name, name) == (ORM.__module__, ORM.__name__, "__init__"):
        raise AttributeError(name)  # it takes no options, see `declared_options`
    if found := _defined(definition.module, definition.node.body, name):
        return found._replace(of_class=definition.documentation)
    for base in definition.node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(base, ast.Name):
            raise _NotInSourceError(ast.unparse(base))
        if base.id != "object":
            with suppress(KeyError):
                return _member(_find(definition.module, base.id), name)
    raise KeyError(name)


def _method(definition: _Definition, name: str) -> _Definition | None:
    """A method of a class; None if it has none of that name."""
    try:
        return _member(definition, name)
    except (AttributeError, KeyError):
        return None


def _attribute(definition: _Definition, name: str) -> Any:
    """The value of an attribute of a class."""
    try:
        module, node, *_ = _member(definition, name)
    except KeyError:
        raise _NotInSourceError(name) from None
    if isinstance(node, ast.Attribute) and node.attr in Rows.__members__:
        return str(Rows[node.attr])
    value = _value(module, node)
    if isinstance(value, Expression):
        raise _NotInSourceError(f"{name} = {value}")
    return value


def _parameters(function: _Definition) -> Iterator[Parameter]:
    """The parameters of a function: annotations as text, defaults as plain values or expressions."""
    if not isinstance(function.node, _FUNCTIONS):
        raise _NotInSourceError(function.module)
    arguments = function.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    kinds = [Parameter.POSITIONAL_OR_KEYWORD] * len(positional) + [Parameter.KEYWORD_ONLY] * len(arguments.kwonlyargs)
    absent: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults = [*absent, *arguments.defaults, *arguments.kw_defaults]
    for argument, kind, default in zip([*positional, *arguments.kwonlyargs], kinds, defaults, strict=True):
        value = Parameter.empty if default is None else _value(function.module, default)
        annotation = _type_text(argument.annotation, function.module) if argument.annotation else ""
        yield Parameter(argument.arg, kind, default=value, annotation=annotation)
    if arguments.kwarg:
        yield Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD)


def _value(module: str, node: ast.AST) -> Any:
    """The value of an expression if it is a literal, a frozenset of one, or a name for either."""
    expression = node
    if isinstance(expression, ast.Name):
        with suppress(_NotInSourceError):
            module, expression, *_ = _find(module, expression.id)
    if isinstance(expression, ast.Call) and ast.unparse(expression.func) == "frozenset":
        return frozenset(_value(module, expression.args[0]) if expression.args else ())
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError):
        return Expression(ast.unparse(node))


def _type_of(annotation: Any) -> str:
    """An annotation of an imported plugin as text."""
    if annotation in (Parameter.empty, Any):
        return ""
    shown = inspect.formatannotation(annotation)
    try:
        return _type_text(ast.parse(shown, mode="eval").body)
    except SyntaxError:  # there is the representation of an object in it
        return shown


def _type_text(node: ast.expr, module: str = "") -> str:
    """An annotation as text: `float >= 0`, `"a" | "b" | null`; names of other types are resolved in the module."""

    def inner(part: ast.expr) -> str:
        return _type_text(part, module)

    match node:
        case ast.Constant(value=str(text)):  # a forward reference
            return inner(ast.parse(text, mode="eval").body)
        case ast.Constant(value=None):
            return "null"
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{inner(left)} | {inner(right)}"
        case ast.Attribute(attr=name):
            return _BOUNDED.get(name, name)
        case ast.Name(id=name):
            with suppress(_NotInSourceError):
                alias = _find(module, name) if module and name not in _BOUNDED else None
                if alias and isinstance(alias.node, ast.Subscript | ast.BinOp):
                    return _type_text(alias.node, alias.module)
            return _BOUNDED.get(name, name)
        case ast.Subscript(value=generic, slice=arguments):
            parts = arguments.elts if isinstance(arguments, ast.Tuple) else [arguments]
            match name := ast.unparse(generic).rpartition(".")[2]:
                case "Literal":
                    return " | ".join(json.dumps(ast.literal_eval(part), ensure_ascii=False) for part in parts)
                case "Union" | "Optional":
                    return " | ".join([*map(inner, parts), *(["null"] if name == "Optional" else [])])
                case "Annotated":
                    bounds = (each for part in parts[1:] if isinstance(part, ast.Call) for each in part.keywords)
                    shown = [f"{_BOUNDS[it.arg]} {ast.unparse(it.value)}" for it in bounds if it.arg in _BOUNDS]
                    return f"{inner(parts[0])} {' and '.join(shown)}".strip()
            return f"{name}[{', '.join(map(inner, parts))}]"
    return ast.unparse(node)

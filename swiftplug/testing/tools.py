"""The contract of a tools format."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from swiftplug.errors import ContractError
from swiftplug.plugin import ToolTurns
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.testing.inputs import on

_CITY = {"type": "string", "description": "the city"}
_TOOLS: dict[str, dict[str, Any]] = {
    "a tool": {
        "name": "weather",
        "description": "Looks up the weather.",
        "parameters": {"type": "object", "properties": {"city": _CITY}, "required": ["city"]},
    },
    "a tool without parameters": {"name": "now", "description": "The time."},
    "a tool whose parameters are null": {"name": "stop", "description": None, "parameters": None},
    "a tool with an empty schema": {"name": "ping", "description": "", "parameters": {}},
    "a tool with a name only": {"name": "bare"},
    "a tool described in Chinese": {
        "name": "天气",
        "description": "查询天气👍",
        "parameters": {"type": "object", "properties": {"城市": {"type": "string", "enum": ["北京", "上海"]}}},
    },
    "a tool with nested parameters": {
        "name": "book",
        "description": 'Books.\nTwo lines, "quotes" and {braces} with 100 %.',
        "parameters": {
            "type": "object",
            "properties": {
                "who": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "what": {"type": ["string", "integer"]},
                "any": {},
            },
        },
    },
}
_CALLS: dict[str, list[dict[str, Any]]] = {
    "a call": [{"name": "weather", "arguments": {"city": "Bern"}}],
    "a call without arguments": [{"name": "now", "arguments": {}}],
    "a call whose arguments are a text": [{"name": "weather", "arguments": "Bern"}],
    "two calls": [{"name": "weather", "arguments": {"城市": "北京"}}, {"name": "book", "arguments": {"who": [{}]}}],
}
_RESULTS: dict[str, list[dict[str, Any]]] = {
    "a result": [{"name": "weather", "content": "sunny"}],
    "a result without a name": [{"name": "", "content": "sunny"}],
    "an empty result": [{"name": "weather", "content": ""}],
    "two results": [{"name": "weather", "content": "晴"}, {"name": "book", "content": '{"ok": true}'}],
}


def check(plugin: LoadedPlugin) -> None:
    """Write tools, calls and results of every shape."""
    write = plugin.bound
    for name, tools in {**{name: [tool] for name, tool in _TOOLS.items()}, "seven tools": [*_TOOLS.values()]}.items():
        given = deepcopy(tools)
        with on(name):
            text, again = (write([tool["name"] for tool in given], given) for _ in range(2))
            if text is not None and not isinstance(text, str):
                raise ContractError(
                    f"returned a {type(text).__name__}, expected text, or None for the chat template's own"
                )
            _check_same(text, again, tools, given)
            if text is not None:
                _check_names([tool["name"] for tool in tools], text, "list every tool")
    # As in a run: an object with both methods writes calls and results, and one with neither leaves them as JSON.
    writer = write.func if isinstance(write, partial) else write
    methods = [method for method in ("format_calls", "format_results") if hasattr(writer, method)]
    if len(methods) == 1:
        raise ContractError(f"has {methods[0]} alone, which is not used; define format_calls and format_results")
    if isinstance(writer, ToolTurns):
        for name, calls in _CALLS.items():
            text = _write(writer.format_calls, "format_calls", name, calls)
            _check_names([str(call["name"]) for call in calls], text, f"write every call (format_calls, {name})")
        for name, results in _RESULTS.items():
            text = _write(writer.format_results, "format_results", name, results)
            _check_names([result["content"] for result in results], text, f"write every result ({name})")


def _write(method: Any, method_name: str, name: str, items: Sequence[Mapping[str, Any]]) -> str:
    given = deepcopy(items)
    with on(f"{name} ({method_name})"):
        text, again = method(given), method(given)
        if not isinstance(text, str):
            raise ContractError(f"returned a {type(text).__name__}, expected text")
        _check_same(text, again, items, given)
    return text


def _check_same(text: Any, again: Any, before: Any, after: Any) -> None:
    if before != after:
        raise ContractError("changes the descriptions that it gets, which are the row's own; work on a copy")
    if text != again:
        raise ContractError(f"writes {text!r:.60} and then {again!r:.60}; let the text depend on the arguments alone")


def _check_names(names: Sequence[str], text: str, what: str) -> None:
    for name in names:
        if name in text:
            continue
        if not name.isascii() and name.encode("unicode_escape").decode() in text:
            raise ContractError(f"writes {name!r} as an ASCII escape; use json.dumps(..., ensure_ascii=False)")
        raise ContractError(f"leaves {name!r} out of {text!r:.60}; {what}")

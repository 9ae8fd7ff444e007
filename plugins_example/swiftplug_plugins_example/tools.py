"""A tools format: tools as Python functions and calls as Python code (CodeAct, arXiv 2402.01030)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


class PythonStubs:
    """Shows the model a stub of each tool.

    Example:
        >>> weather = {"description": "Look it up.", "parameters": {"properties": {"city": {"type": "string"}}}}
        >>> print(PythonStubs()(["weather"], [weather]).splitlines()[2])
        def weather(city: str): ...  # Look it up.
    """

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """The text that follows the system message. A description is an object with a JSON schema, or a string."""
        stubs = [self._stub(name, desc) for name, desc in zip(tool_names, tool_descs, strict=True)]
        return "\n".join(["Call these Python functions, one call a line:", "```python", *stubs, "```"])

    # The next two methods are optional. Without them a call is written as JSON and a result as it is.
    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The text with which the assistant calls tools."""
        return "\n".join(f"{call['name']}({self._arguments(call['arguments'])})" for call in calls)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """The user turn with the results."""
        return "\n".join(f">>> {result['content']}" for result in results)

    def _stub(self, name: str, desc: Any) -> str:
        if not isinstance(desc, Mapping):
            return f"def {name}(*args): ...  # {_one_line(desc)}"
        properties: Mapping[str, Any] = (desc.get("parameters") or {}).get("properties") or {}
        signature = ", ".join(f"{key}: {_annotation(schema)}" for key, schema in properties.items())
        return f"def {name}({signature}): ...  # {_one_line(desc.get('description', ''))}"

    def _arguments(self, arguments: Any) -> str:
        if not isinstance(arguments, Mapping):
            return str(arguments)
        return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())


def _annotation(schema: Mapping[str, Any]) -> str:
    """The Python type of a JSON schema; `type` may be a list of several."""
    types = schema.get("type")
    return " | ".join(TYPES.get(name, "Any") for name in ([types] if isinstance(types, str) else types or ["any"]))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())

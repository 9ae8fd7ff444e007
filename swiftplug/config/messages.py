"""The error message for a config that pydantic rejects."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from swiftplug.config.counterparts import counterparts
from swiftplug.config.keys import Key, KeySources, Path, value_at
from swiftplug.config.yaml_file import describe
from swiftplug.errors import UserError, closest, nearest

_PLUGIN = "the name of a plugin, or {name: ..., and its options}"
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_too_short": "text that is not empty",
    "string_type": "text",
}


def config_error(
    error: ValidationError, values: Mapping[str, Any], sources: KeySources, keys: Mapping[str, Key]
) -> UserError:
    """The first problem of a config: where, what was found, what was expected, and the nearest valid word."""
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(first["loc"], sources, keys)
    path = _existing(first["loc"], values)
    where = sources.where(path)
    if first["type"] == "missing":
        return UserError(f"{where}: has no {first['loc'][-1]!r}")
    if first["type"] == "value_error":
        return UserError(f"{where}: {first['ctx']['error']}")
    # A union has one error for each of its types, all in the same place.
    expected = dict.fromkeys(_expected(detail) for detail in details if _existing(detail["loc"], values) == path)
    found = value_at(values, path)
    hint = ""
    if isinstance(found, (int, float)) and expected.keys() & {_EXPECTED["string_type"], _PLUGIN}:
        hint = "; put it in quotes"
    elif first["type"] == "literal_error" and isinstance(found, str):
        hint = closest(found, keys[".".join(map(str, path))].choices)
    return UserError(f"{where}: found {describe(found)}, expected {' or '.join(expected)}{hint}")


def _unknown_key(loc: Path, sources: KeySources, keys: Mapping[str, Key]) -> UserError:
    *sections, key = map(str, loc)
    prefix = "".join(f"{section}." for section in sections)
    names = [name.removeprefix(prefix) for name in keys if name.startswith(prefix)]
    here = counterparts(key, keys)
    if here and here != [prefix + key]:
        hint = f"; did you mean {' or '.join(map(repr, here))}?"
    else:
        hint = nearest(key, [name for name in names if "." not in name])
    if not sections and "training" in names and ("did you mean" not in hint or "training." in hint):
        hint += " (fields of TrainingArguments go under 'training')"
    source = sources.nearest(loc)
    inside = f" in {'.'.join(sections)!r}" if sections else ""
    return UserError(f"{source.place if source else prefix + key}: unknown key {key!r}{inside}{hint}")


def _existing(loc: Path, values: Mapping[str, Any]) -> Path:
    """The beginning of pydantic's location that exists in the config; the rest names types and missing keys."""
    for depth, part in enumerate(loc):
        at = value_at(values, loc[:depth])
        if not (isinstance(at, dict) and part in at) and not (isinstance(at, list) and isinstance(part, int)):
            return loc[:depth]
    return loc


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "model_type" and detail["ctx"]["class_name"].endswith("Choice"):
        return _PLUGIN
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    return _EXPECTED.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")

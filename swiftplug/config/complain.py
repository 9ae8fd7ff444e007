"""What a failed check of a config means, in one line."""

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from swiftplug.config.tree import Path, Tree
from swiftplug.errors import UserError, nearest

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


def explain(error: ValidationError, tree: Tree, model: type[BaseModel]) -> UserError:
    """The first thing wrong with a config.

    Args:
        error: What pydantic found.
        tree: What it looked at.
        model: The model it checked against.

    Returns:
        An error whose line says where, what was found, what was expected and the nearest right word.
    """
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(first["loc"], tree, model)
    path = _said(first["loc"], tree)
    where = tree.origins.where(path)
    if first["type"] == "missing":
        return UserError(f"{where}: has no {first['loc'][-1]!r}")
    if first["type"] == "value_error":
        return UserError(f"{where}: {first['ctx']['error']}")
    # A union complains once for each of its types, in one place.
    expected = dict.fromkeys(_expected(detail) for detail in details if _said(detail["loc"], tree) == path)
    found = tree.get(*path)
    hint = ""
    if isinstance(found, (int, float)) and expected.keys() & {_EXPECTED["string_type"], _PLUGIN}:
        hint = "; put it in quotes"
    elif first["type"] == "literal_error" and isinstance(found, str):
        words = [word.strip("'") for word in first["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        close = nearest(found, words)
        hint = close if "did you mean" in close else ""
    return UserError(f"{where}: found {shown(found)}, expected {' or '.join(expected)}{hint}")


def _unknown_key(loc: Path, tree: Tree, model: type[BaseModel]) -> UserError:
    for part in loc[:-1]:
        section = model.model_fields[str(part)].annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        model = section
    key = str(loc[-1])
    hint = nearest(key, model.model_fields)
    if "did you mean" not in hint:
        hint = next((f"; did you mean '{name}.{key}'?" for name in _sections_with(key, model)), hint)
    if "did you mean" not in hint and "training" in model.model_fields:
        hint += " (fields of TrainingArguments go under 'training')"
    origin = tree.origins.nearest(loc)
    place = origin.place if origin else ".".join(map(str, loc))
    inside = f" in {'.'.join(map(str, loc[:-1]))!r}" if len(loc) > 1 else ""
    return UserError(f"{place}: unknown key {key!r}{inside}{hint}")


def _sections_with(key: str, model: type[BaseModel]) -> list[str]:
    return [
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and key in field.annotation.model_fields
    ]


def _said(loc: Path, tree: Tree) -> Path:
    """As much of pydantic's location as was written; the rest names types and missing keys."""
    path: Path = ()
    for part in loc:
        at = tree.get(*path)
        if not (isinstance(at, dict) and part in at) and not (isinstance(at, list) and isinstance(part, int)):
            break
        path = (*path, part)
    return path


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] == "model_type" and detail["ctx"]["class_name"].endswith("Choice"):
        return _PLUGIN
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    return _EXPECTED.get(detail["type"]) or detail["msg"].removeprefix("Input should be ")


def shown(value: Any) -> str:
    """A value as an error says what it found."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)

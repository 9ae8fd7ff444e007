"""A JSON schema of the config, with the options of the installed plugins, for editors that complete and check YAML."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from swiftplug.config.keys import Key, keys_of
from swiftplug.config.schema import RunConfig
from swiftplug.plugin.registry import KINDS, FoundPlugin, Registry
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.definitions import Expression, describe

_KIND_OF_KEY = {kind.key: kind.name for kind in KINDS.values()} | {"eval_dataset": "dataset"}
_ALSO_PATHS = ("model", "dataset", "orm", "prm")  # the kinds of which a name may be a path or a hub id
_SHOWN_IN_HELP = ("panel", "metavar", "flag")

Schema = dict[str, Any]


def config_schema(configs: Sequence[type[RunConfig]], registry: Registry, not_settable: Collection[str]) -> Schema:
    """The schema of a file that is one of several configs.

    Args:
        configs: The configs: `TrainConfig`, `SampleConfig`.
        registry: The plugins, whose options are known where they can be imported.
        not_settable: Fields of `TrainingArguments` that a config cannot set.
    """
    schemas = [_config(config, registry, not_settable) for config in configs]
    sections = {name: section for schema in schemas for name, section in schema.pop("$defs").items()}
    # Editors know this version of JSON schema best.
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$defs": sections, "anyOf": schemas}


def _config(config: type[RunConfig], registry: Registry, not_settable: Collection[str]) -> Schema:
    schema = config.model_json_schema()
    for section in (schema, *schema.get("$defs", {}).values()):
        for declared in section.get("properties", {}).values():
            for name in _SHOWN_IN_HELP:
                declared.pop(name, None)
    for key in keys_of(config).values():
        if key.is_plugin:
            value = _plugins(_KIND_OF_KEY[key.name], registry, takes_weight=key.name in ("environment", "orm", "prm"))
            schema["properties"][key.name] = {"description": key.help, **_one_or_list(key, value)}
        elif key.is_list:
            section, _, name = key.name.rpartition(".")
            of = schema["$defs"][next(it.type for it in keys_of(config).values() if it.name == section).__name__]
            of["properties"][name] = {"description": key.help, **_one_or_list(key, {"type": "string"})}
    if "training" in schema["properties"]:
        schema["properties"]["training"] = _training(not_settable)
    for name, declared in schema["properties"].items():  # a key without a value has its default
        schema["properties"][name] = {
            "description": declared.get("description", ""),
            "anyOf": [declared, {"type": "null"}],
        }
    unused = {"PluginChoice", "ScorerChoice"}
    schema["$defs"] = {name: it for name, it in schema["$defs"].items() if name not in unused}
    return schema


def _one_or_list(key: Key, item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item}]} if key.is_list else item


def _plugins(kind: str, registry: Registry, *, takes_weight: bool) -> Schema:
    """What names a plugin of a kind: its name, or a mapping of its name and options."""
    by_name: dict[str, list[FoundPlugin]] = {}
    for found in registry.found(kind):
        by_name.setdefault(found.name, []).append(found)
        by_name[found.qualified_name] = [found]
    names: list[Schema] = [
        {"const": name, "description": found[0].summary or ""} for name, found in by_name.items() if len(found) == 1
    ]
    known = [name["const"] for name in names]
    patterns = []
    if kind in _ALSO_PATHS:
        patterns.append({"type": "string"})
    if kind == "loss_scale":
        single = "|".join(map(re.escape, known))
        patterns.append({"type": "string", "pattern": rf"^({single})(\+({single}))+$"})
    weight = {"weight": {"type": "number", "minimum": 0, "description": "Weight of its rewards in the score."}}
    options = [
        {
            "if": {"properties": {"name": {"enum": [name for name in known if by_name[name] == [found]]}}},
            "then": _options(found, weight if takes_weight else {}),
        }
        for found in registry.found(kind)
    ]
    mapping = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"anyOf": [*names, *patterns]}},
        "allOf": options,
    }
    return {"anyOf": [*names, *patterns, mapping]}


def _options(found: FoundPlugin, others: Schema) -> Schema:
    """The mapping of a plugin's name and options."""
    described = describe(found)
    annotations: Schema = {}
    with suppress(Exception, SystemExit):  # a broken plugin has options of unknown types
        annotations = {name: it.annotation for name, it in declared_options(found.kind, found.load()).named.items()}
    properties: Schema = {"name": True, **others}
    for option in described.options:
        allowed = _type(annotations.get(option.name, Any))
        if option.default is None and not option.required:
            allowed = {"anyOf": [allowed, {"type": "null"}]}
        if not option.required and not isinstance(option.default, Expression):
            allowed = {**allowed, "default": option.default}
        properties[option.name] = {"description": option.help, **allowed}
    schema = {"properties": properties, "required": [it.name for it in described.options if it.required]}
    is_open = described.any_other is not None or described.broken or (described.needs and not described.options)
    return schema if is_open else {**schema, "additionalProperties": False}


def _type(annotation: Any) -> Schema:
    """The schema of a type; anything where it cannot be told."""
    try:
        try:
            adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:  # models and dataclasses have a config of their own
            adapter = TypeAdapter(annotation)
        schema = adapter.json_schema()
    except (PydanticUserError, PydanticInvalidForJsonSchema, TypeError):
        return {}
    return {} if "$defs" in schema else schema  # whose references would lead to nowhere here


def _training(not_settable: Collection[str]) -> Schema:
    """The fields of `TrainingArguments`."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    properties = {}
    for field in dataclasses.fields(TrainingArguments):
        if field.init and field.name not in not_settable:
            properties[field.name] = {"description": str(field.metadata.get("help", "")), **_type(hints[field.name])}
    description = "Fields of transformers.TrainingArguments."
    return {"type": "object", "description": description, "properties": properties, "additionalProperties": False}

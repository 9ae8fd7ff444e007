"""Any method of PEFT, by the type and the fields of its config."""

import dataclasses
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig

from swiftplug.builtin.tuners.adapters import Adapter, configure, wrap
from swiftplug.errors import UserError, nearest

# Fields that say where an adapter came from; PEFT fills them in itself.
_NOT_OPTIONS = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}


class Peft(Adapter):
    """Opens every adapter that PEFT has: `{name: peft, type: vera, r: 256}`; saved as a PEFT adapter."""

    @staticmethod
    def prepare_model(  # type: ignore[override]  # an option without a default
        args: Any, model: torch.nn.Module, *, type: str, **fields: Any
    ) -> torch.nn.Module:
        """Wrap a base model; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            type: The method, by its name in `peft.PeftType`, in any case: `vera`, `loha`, `randlora`, ...
            **fields: The fields of its config.

        Raises:
            UserError: If PEFT has no such method, its config no such field, or the model no module of a given name.
        """
        return wrap("peft", model, _config(type, fields))

    @staticmethod
    def check_options(*, type: str, **fields: Any) -> None:
        """Refuse, before a model is loaded, what `prepare_model` would refuse."""
        _config(type, fields)


def _config(kind: str, fields: dict[str, Any]) -> PeftConfig:
    known = {name.value: config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    config_class = known.get(kind.upper())
    if config_class is None:
        raise UserError(f"tuner peft: PEFT has no type {kind!r}{nearest(kind.upper(), known)}")
    names = {field.name for field in dataclasses.fields(config_class) if field.init} - _NOT_OPTIONS
    for name in fields:
        if name not in names:
            raise UserError(f"tuner peft: {config_class.__name__} has no field {name!r}{nearest(name, names)}")
    return configure("peft", config_class, **fields)

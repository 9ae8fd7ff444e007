"""Training a part of a model's own weights, chosen by regular expressions."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from swiftplug.builtin.tuners.whole import WholeModel, load_weights, refuse_quantized
from swiftplug.errors import UserError, nearest

_FILE = "freeze.json"
_RULES = "freeze_rules"  # where a model carries its rules


class _Rules(NamedTuple):
    train: list[str] | None
    freeze: list[str]


class Freeze(WholeModel):
    """Trains the parameters whose names match; saved as a whole Transformers model, with the rules beside it."""

    @staticmethod
    def prepare_model(
        args: Any, model: torch.nn.Module, *, train: list[str] | None = None, freeze: list[str] | None = None
    ) -> torch.nn.Module:
        r"""Choose what trains; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            train: Regular expressions, found anywhere in a parameter's name: what trains. None is everything.
            freeze: Regular expressions: what does not train, even where `train` matches.

        Raises:
            UserError: If there is no rule, one is malformed or matches nothing, nothing would train, or the model is
                quantized.

        Example:
            `{name: freeze, train: ['layers\.(28|29)\.', 'norm']}`
        """
        _check_rules(train, freeze)
        refuse_quantized(model, "freeze")
        return _apply(model, _Rules(train, freeze or []))

    @staticmethod
    def check_options(*, train: list[str] | None = None, freeze: list[str] | None = None) -> None:
        """Refuse, before a model is loaded, rules that no model can take."""
        _check_rules(train, freeze)

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the whole model and the rules; see `Tuner.save_pretrained`."""
        WholeModel.save_pretrained(model, save_directory, state_dict, safe_serialization, **kwargs)
        rules = vars(model)[_RULES]._asdict()
        (Path(save_directory) / _FILE).write_text(json.dumps(rules, indent=2, ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs: Any) -> torch.nn.Module:
        """Put the saved weights into the given model, under the saved rules; see `Tuner.from_pretrained`."""
        if kwargs.get("is_trainable", False):
            _apply(model, _Rules(**json.loads((Path(model_id) / _FILE).read_text(encoding="utf-8"))))
        else:
            model.requires_grad_(False)
        load_weights(model, model_id)
        return model


def _check_rules(train: list[str] | None, freeze: list[str] | None) -> None:
    if not train and not freeze:
        raise UserError("tuner freeze: give `train` or `freeze`, lists of regular expressions; to train all, take full")
    for pattern in [*(train or []), *(freeze or [])]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"tuner freeze: {pattern!r} is not a regular expression: {error}") from error


def _apply(model: torch.nn.Module, rules: _Rules) -> torch.nn.Module:
    """Set `requires_grad` by the rules, and leave them on the model for `save_pretrained`."""
    # A tied parameter goes by each of its names.
    parameters = list(model.named_parameters(remove_duplicate=False))
    frozen = _matching(parameters, rules.freeze)
    trained = (
        {id(parameter) for _, parameter in parameters} if rules.train is None else _matching(parameters, rules.train)
    )
    if not trained - frozen:
        raise UserError(
            f"tuner freeze: nothing would train: freeze {rules.freeze} covers all that train {rules.train} gives"
        )
    for _, parameter in parameters:
        parameter.requires_grad_(id(parameter) in trained - frozen)
    vars(model)[_RULES] = rules
    return model


def _matching(parameters: list[tuple[str, torch.nn.Parameter]], patterns: list[str]) -> set[int]:
    """The ids of the parameters that any of the patterns matches; each pattern must match one."""
    found: set[int] = set()
    for pattern in patterns:
        matches = {id(parameter) for name, parameter in parameters if re.search(pattern, name)}
        if not matches:
            names = {name for name, _ in parameters}
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            raise UserError(f"tuner freeze: no parameter matches {pattern!r}{nearest(pattern, parts)}")
        found |= matches
    return found

"""Tuners that train all or some of the model's own weights, and save a complete Transformers model."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from swiftplug.builtin.patterns import compile_pattern, matching_names
from swiftplug.plugin import Tuner, UserError

_FREEZE_FILE = "freeze.json"
_FREEZE_RULES = "freeze_rules"  # the attribute of a model that keeps its rules


class Full(Tuner):
    """Full fine-tuning: trains every weight; saves a whole Transformers model."""

    saves_whole_model = True

    @staticmethod
    def prepare_model(args: Any, model: torch.nn.Module) -> torch.nn.Module:
        """Make every weight trainable; see `Tuner.prepare_model`.

        Raises:
            UserError: The model is quantized: such weights cannot be trained.
        """
        _refuse_quantized(model, "full")
        return model.requires_grad_(True)

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the config and all weights, always as safetensors; see `Tuner.save_pretrained`."""
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(save_directory, state_dict=state_dict)

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs: Any) -> torch.nn.Module:
        """Load the saved weights into the given model; see `Tuner.from_pretrained`."""
        model.requires_grad_(kwargs.get("is_trainable", False))
        return _load_weights(model, model_id)


class Freeze(Full):
    """Trains the parameters whose names match regular expressions; saves a whole Transformers model."""

    @staticmethod
    def prepare_model(
        args: Any, model: torch.nn.Module, *, train: list[str] | None = None, freeze: list[str] | None = None
    ) -> torch.nn.Module:
        r"""Choose what is trained; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            train: Regular expressions, found anywhere in a parameter's name: what is trained. None is everything.
            freeze: Regular expressions: what is not trained, even where `train` matches.

        Raises:
            UserError: There is no rule, one is malformed or matches nothing, nothing would be trained, or the model is
                quantized.

        Example:
            `{name: freeze, train: ['layers\.(28|29)\.', 'norm']}`
        """
        Freeze.check_options(train=train, freeze=freeze)
        _refuse_quantized(model, "freeze")
        return _apply_rules(model, train, freeze or [])

    @staticmethod
    def check_options(*, train: list[str] | None = None, freeze: list[str] | None = None) -> None:
        """Reject, before a model is loaded, rules that cannot apply to any model."""
        if not train and not freeze:
            raise UserError(
                "tuner freeze: give `train` or `freeze`, lists of regular expressions; to train all, use full"
            )
        for pattern in [*(train or []), *(freeze or [])]:
            compile_pattern(pattern, "tuner freeze:")

    @staticmethod
    def save_pretrained(model: torch.nn.Module, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Write the whole model, and the rules in `freeze.json`; see `Tuner.save_pretrained`."""
        Full.save_pretrained(model, save_directory, *args, **kwargs)
        rules = json.dumps(vars(model)[_FREEZE_RULES], indent=2, ensure_ascii=False)
        (Path(save_directory) / _FREEZE_FILE).write_text(rules, encoding="utf-8")

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs: Any) -> torch.nn.Module:
        """Load the saved weights into the given model, under the saved rules; see `Tuner.from_pretrained`."""
        if kwargs.get("is_trainable", False):
            _apply_rules(model, **json.loads((Path(model_id) / _FREEZE_FILE).read_text(encoding="utf-8")))
        else:
            model.requires_grad_(False)
        return _load_weights(model, model_id)


def _apply_rules(model: torch.nn.Module, train: list[str] | None, freeze: list[str]) -> torch.nn.Module:
    """Set `requires_grad` by the rules, and keep them on the model for `save_pretrained`."""
    # A tied parameter has several names; any of them may match.
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def find(patterns: list[str]) -> set[torch.nn.Parameter]:
        names = matching_names(parameters, patterns, where="tuner freeze", noun="parameter")
        return {parameters[name] for name in names}

    frozen = find(freeze)
    trained = (set(parameters.values()) if train is None else find(train)) - frozen
    if not trained:
        raise UserError(
            f"tuner freeze: nothing would be trained: freeze {freeze} covers all that train {train} matches"
        )
    for parameter in parameters.values():
        parameter.requires_grad_(parameter in trained)
    vars(model)[_FREEZE_RULES] = {"train": train, "freeze": freeze}
    return model


@torch.no_grad()
def _load_weights(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    """Load saved weights into a model; its parameters stay the same objects, and tied ones stay tied.

    Trainable parameters take the saved values in float32, so that training continues from exactly these; the others
    keep their data type.
    """
    assert isinstance(model, PreTrainedModel)
    # Transformers itself reads the files: it knows how the names and shapes of files map to those of the model.
    saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad:
            tensor.data = saved[name].to(tensor.device)
        else:
            tensor.data.copy_(saved[name])
    return model


def _refuse_quantized(model: torch.nn.Module, tuner: str) -> None:
    if getattr(model, "quantization_method", None) is not None:
        raise UserError(f"tuner {tuner}: quantized weights cannot be trained; use an adapter, such as lora")

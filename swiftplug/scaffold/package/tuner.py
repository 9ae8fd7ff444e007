"""A tuner: trains the last layers only."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from swiftplug.plugin import RunArguments, Tuner

FILE = "last_layers.safetensors"


class LastLayers(Tuner):
    """Trains the last decoder layers and freezes all else."""

    # The keyword-only parameters are the plugin's options; they are checked against their annotations.
    @staticmethod
    def prepare_model(args: RunArguments, model: torch.nn.Module, *, layers: int = 1) -> torch.nn.Module:
        """Called with a newly loaded base model.

        Args:
            args: The run's arguments.
            model: The base model.
            layers: Number of layers to train.
        """
        names = [name for name, _ in model.named_parameters()]
        numbers = {name: int(layer[1]) for name in names if (layer := re.search(r"\.(\d+)\.", name))}
        first = max(numbers.values()) - layers + 1
        return train_only(model, {name for name, number in numbers.items() if number >= first})

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write what is trained. Called at every checkpoint and at the end."""
        weights = model.state_dict() if state_dict is None else state_dict
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        save_file({name: weights[name].contiguous() for name in trained}, Path(save_directory, FILE))

    @staticmethod
    def from_pretrained(
        model: torch.nn.Module, model_id: str, is_trainable: bool = False, **kwargs: Any
    ) -> torch.nn.Module:
        """Put what was saved into a newly loaded base model. Called to resume (`is_trainable`) and to sample."""
        saved = load_file(Path(model_id, FILE))
        if unknown := model.load_state_dict(saved, strict=False).unexpected_keys:
            raise ValueError(f"{model_id} was trained on another base model: this one has no {unknown[0]}")
        return train_only(model, set(saved) if is_trainable else set())


def train_only(model: torch.nn.Module, names: set[str]) -> torch.nn.Module:
    """Freeze all parameters except those with these names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model

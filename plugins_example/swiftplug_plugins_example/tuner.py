"""A tuner: trains only the biases and norms, a thousandth of the weights."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from swiftplug.plugin import RunArguments, Tuner

FILE = "bitfit.safetensors"


class BitFit(Tuner):
    """BitFit (Ben Zaken et al., arXiv 2106.10199), with the norms, since most of today's models have no biases."""

    @staticmethod
    def prepare_model(args: RunArguments, model: torch.nn.Module, *, trains: str = r"(norm|bias)") -> torch.nn.Module:
        """Freeze all parameters except those whose name matches `trains`. Called with a newly loaded base model."""
        return _train_only(model, {name for name, _ in model.named_parameters() if re.search(trains, name)})

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write only what is trained. Called at every checkpoint and at the end."""
        weights = model.state_dict() if state_dict is None else state_dict
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        save_file({name: weights[name].contiguous() for name in trained}, Path(save_directory, FILE))

    @staticmethod
    def from_pretrained(
        model: torch.nn.Module, model_id: str, is_trainable: bool = False, **kwargs: Any
    ) -> torch.nn.Module:
        """Apply it to a newly loaded base model. Called at every resume, and to sample from the run."""
        saved = load_file(Path(model_id, FILE))
        unknown = model.load_state_dict(saved, strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"{model_id}/{FILE} is of another base model: this one has no {unknown[0]!r}")
        return _train_only(model, set(saved) if is_trainable else set())


def _train_only(model: torch.nn.Module, names: set[str]) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model

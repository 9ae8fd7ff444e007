"""IA3: learned vectors that scale keys, values and feed-forward activations (arXiv 2205.05638)."""

from typing import Any

import torch
from peft import IA3Config

from swiftplug.builtin.tuners.adapters import Adapter, configure, wrap


class IA3(Adapter):
    """Trains one scaling vector for each of a few modules; saved as a PEFT adapter."""

    @staticmethod
    def prepare_model(
        args: Any,
        model: torch.nn.Module,
        *,
        target_modules: str | list[str] | None = None,
        feedforward_modules: str | list[str] | None = None,
        modules_to_save: list[str] | None = None,
        init_ia3_weights: bool = True,
    ) -> torch.nn.Module:
        """Wrap a base model; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            target_modules: Names (or ends of names) of modules, or one regular expression over whole names. None takes
                what PEFT knows for the architecture: keys, values and a feed-forward layer.
            feedforward_modules: Those of the targets whose input is scaled rather than their output.
            modules_to_save: Modules that train whole and are saved with the adapter.
            init_ia3_weights: Whether the vectors start at one, which changes nothing yet.

        Raises:
            UserError: If the model has no module of a given name, or PEFT does not know the architecture.
        """
        config = configure(
            "ia3",
            IA3Config,
            target_modules=target_modules,
            feedforward_modules=feedforward_modules,
            modules_to_save=modules_to_save,
            init_ia3_weights=init_ia3_weights,
        )
        return wrap("ia3", model, config)

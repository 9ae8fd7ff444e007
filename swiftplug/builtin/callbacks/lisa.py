"""LISA: layerwise importance sampling."""

import random
from typing import Any

import torch
from peft import PeftModel
from pydantic import PositiveInt
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from swiftplug.plugin import MODEL_ARCH_MAPPING, UserError


class Lisa(TrainerCallback):
    """LISA (arXiv 2403.17919): trains a few random decoder layers at a time, all other parameters always.

    The layers depend only on the seed and the step, so a resumed run draws the same ones. A layer that is not trained
    keeps its optimizer state and gets neither gradient nor weight decay.
    """

    def __init__(self, n_layers: PositiveInt = 2, interval: PositiveInt = 20) -> None:
        """Set how many layers are trained, and for how long.

        Args:
            n_layers: Number of layers trained at a time.
            interval: Number of steps after which other layers are drawn.
        """
        self.n_layers = n_layers
        self.interval = interval
        self._layers: list[list[torch.nn.Parameter]] = []
        self._period: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers; the optimizer already has the parameters of all of them.

        Raises:
            UserError: The model has adapters or too few layers, or several processes would wait for missing gradients.
        """
        model: Any = unwrap_model(kwargs["model"])
        if isinstance(model, PeftModel):
            raise UserError("callback lisa: the layers of an adapter are small already; use the tuner full")
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise UserError("callback lisa: several processes need training.ddp_find_unused_parameters: true")
        keys = MODEL_ARCH_MAPPING[model.model_meta.model_arch]
        layers = list(model.get_submodule(keys.module_list).children())
        if self.n_layers > len(layers):
            raise UserError(f"callback lisa: n_layers is {self.n_layers}, but the model has {len(layers)} layers")
        self._layers = [[parameter for parameter in layer.parameters() if parameter.requires_grad] for layer in layers]
        self._period = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw layers at the start of an interval, or when a resumed run enters one."""
        period = state.global_step // self.interval
        if period == self._period:
            return
        self._period = period
        chosen = random.Random(f"{args.seed} {period}").sample(range(len(self._layers)), self.n_layers)
        for index, parameters in enumerate(self._layers):
            for parameter in parameters:
                parameter.requires_grad_(index in chosen)
                parameter.grad = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make all layers trainable again, as the tuner had them."""
        for parameters in self._layers:
            for parameter in parameters:
                parameter.requires_grad_(True)

"""LISA: layerwise importance sampling."""

import random
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import PositiveInt
from transformers import PretrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_utils import unwrap_model

from swiftplug.plugin import MODEL_ARCH_MAPPING, RunArguments, UserError


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

    def check_run(self, args: RunArguments) -> None:
        """Reject, before the model is loaded, a run in which it cannot act.

        Raises:
            UserError: The tuner trains an adapter, the model has too few layers, or several processes would wait for
                missing gradients.
        """
        if args.tuner.name.removeprefix("swiftplug:") in ("lora", "ia3", "peft"):
            raise UserError(f"callback lisa: the tuner {args.tuner.name} freezes the layers; use the tuner full")
        if args.fsdp or args.deepspeed:
            raise UserError("callback lisa: cannot switch layers on and off that FSDP or DeepSpeed shards; use DDP")
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise UserError("callback lisa: several processes need training.ddp_find_unused_parameters: true")
        folder = Path(args.model.name).expanduser()
        if (folder / "config.json").is_file():
            config = PretrainedConfig.get_config_dict(str(folder))[0]
            layers = config.get("text_config", config).get("num_hidden_layers", self.n_layers)
            self._check_layers(layers)

    def _check_layers(self, count: int) -> None:
        if self.n_layers > count:
            raise UserError(f"callback lisa: n_layers is {self.n_layers}, but the model has {count} layers to train")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the layers; the optimizer already has the parameters of all of them.

        Raises:
            UserError: The model has adapters or too few layers.
        """
        model: Any = unwrap_model(kwargs["model"])
        if isinstance(model, PeftModel):
            raise UserError("callback lisa: the layers of an adapter are small already; use the tuner full")
        keys = MODEL_ARCH_MAPPING[model.model_meta.model_arch]
        layers = model.get_submodule(keys.module_list).children()
        trained = [[parameter for parameter in layer.parameters() if parameter.requires_grad] for layer in layers]
        self._layers = [parameters for parameters in trained if parameters]  # a tuner may have frozen some
        self._check_layers(len(self._layers))
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

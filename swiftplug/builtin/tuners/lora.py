"""LoRA: low-rank matrices beside frozen linear layers (arXiv 2106.09685), on a quantized base too (QLoRA)."""

from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig
from pydantic import Field, PositiveInt

from swiftplug.builtin.tuners.adapters import Adapter, configure, wrap


class LoRA(Adapter):
    """Trains low-rank matrices beside frozen linear layers; saved as a PEFT adapter."""

    @staticmethod
    def prepare_model(
        args: Any,
        model: torch.nn.Module,
        *,
        r: PositiveInt = 8,
        lora_alpha: int = 16,
        lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        target_modules: str | list[str] = "all-linear",
        modules_to_save: list[str] | None = None,
        bias: Literal["none", "all", "lora_only"] = "none",
        use_rslora: bool = False,
        use_dora: bool = False,
        init_lora_weights: bool | Literal["gaussian", "orthogonal", "olora", "pissa"] = True,
    ) -> torch.nn.Module:
        """Wrap a base model; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            r: The rank.
            lora_alpha: The scale: the update is multiplied by `lora_alpha / r`.
            lora_dropout: The dropout on the adapters' input.
            target_modules: Names (or ends of names) of modules, one regular expression over whole names, or
                `all-linear`: every linear layer but the output head.
            modules_to_save: Modules that train whole and are saved with the adapter.
            bias: Which biases train.
            use_rslora: Scale by `lora_alpha / sqrt(r)` (arXiv 2312.03732).
            use_dora: Train magnitude and direction apart (DoRA, arXiv 2402.09353).
            init_lora_weights: How the matrices start; `olora` (arXiv 2406.01775) and `pissa` (arXiv 2404.02948) start
                from the base weights, and take their share out of those.

        Raises:
            UserError: If the model has no module of a given name, or PEFT refuses a value.
        """
        config = configure(
            "lora",
            LoraConfig,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules,
            modules_to_save=modules_to_save,
            bias=bias,
            use_rslora=use_rslora,
            use_dora=use_dora,
            init_lora_weights=init_lora_weights,
        )
        return wrap("lora", model, config)

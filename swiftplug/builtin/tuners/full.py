"""Full fine-tuning: every weight trains."""

from typing import Any

import torch

from swiftplug.builtin.tuners.whole import WholeModel, load_weights, refuse_quantized


class Full(WholeModel):
    """Trains every weight; saved as a whole Transformers model."""

    @staticmethod
    def prepare_model(args: Any, model: torch.nn.Module) -> torch.nn.Module:
        """Let every weight train; see `Tuner.prepare_model`.

        Raises:
            UserError: If the model is quantized: such weights do not train.
        """
        refuse_quantized(model, "full")
        return model.requires_grad_(True)

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs: Any) -> torch.nn.Module:
        """Put the saved weights into the given model; see `Tuner.from_pretrained`."""
        model.requires_grad_(kwargs.get("is_trainable", False))
        load_weights(model, model_id)
        return model

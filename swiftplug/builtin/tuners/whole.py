"""What the tuners that train a model's own weights share: saving it whole, and loading those weights back."""

from typing import Any

import torch
from transformers import PreTrainedModel

from swiftplug.errors import UserError
from swiftplug.plugin.tuner import Tuner


class WholeModel(Tuner):
    """A tuner that saves the whole model: the folder loads with plain Transformers."""

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


@torch.no_grad()
def load_weights(model: torch.nn.Module, folder: str) -> None:
    """Put saved weights into a model, whose parameters stay the same objects, tied ones tied.

    Parameters that train take the saved values in float32, so that nothing is rounded before training goes on; all
    others keep their data type.

    Args:
        model: A Transformers model with `requires_grad` set as it will train.
        folder: What `WholeModel.save_pretrained` wrote.
    """
    assert isinstance(model, PreTrainedModel)
    # Transformers itself reads the files: it knows how the names and shapes of files map to those of the model.
    saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.requires_grad:
            tensor.data = saved[name].to(tensor.device)
        else:
            tensor.data.copy_(saved[name])


def refuse_quantized(model: torch.nn.Module, tuner: str) -> None:
    """Raise a UserError for a model that Transformers loaded with quantized weights."""
    if getattr(model, "quantization_method", None) is not None:
        raise UserError(f"tuner {tuner}: quantized weights do not train; take an adapter, such as lora")

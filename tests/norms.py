"""A tuner for tests that is not PEFT's: it trains the normalization layers alone."""

from typing import Any

from safetensors.torch import load_file, save_file

from swiftplug.plugin import Tuner, register_tuner


@register_tuner("norms")
class Norms(Tuner):
    @staticmethod
    def prepare_model(args: Any, model: Any) -> Any:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    @staticmethod
    def save_pretrained(model: Any, save_directory: str, **kwargs: Any) -> None:
        norms = {name: weight for name, weight in model.state_dict().items() if "norm" in name}
        save_file(norms, f"{save_directory}/norms.safetensors")

    @staticmethod
    def from_pretrained(model: Any, model_id: str, **kwargs: Any) -> Any:
        model.load_state_dict(load_file(f"{model_id}/norms.safetensors"), strict=False)
        return Norms.prepare_model(None, model)

"""What the tuners that go through PEFT share: wrapping a base model, saving the adapter, putting it back."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

from swiftplug.errors import UserError, nearest
from swiftplug.plugin.tuner import Tuner


class Adapter(Tuner):
    """A tuner whose weights are a PEFT adapter: the saved folder loads with plain PEFT."""

    @staticmethod
    def save_pretrained(
        model: torch.nn.Module,
        save_directory: str,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write `adapter_config.json` and the adapter's weights; see `Tuner.save_pretrained`."""
        assert isinstance(model, PeftModel)
        # PEFT's "auto" would ask the hub, at every save, whether the frozen embeddings still have their old size.
        model.save_pretrained(
            save_directory, safe_serialization=safe_serialization, state_dict=state_dict, save_embedding_layers=False
        )

    @staticmethod
    def from_pretrained(model: torch.nn.Module, model_id: str, **kwargs: Any) -> torch.nn.Module:
        """Put a saved adapter onto its base model; see `Tuner.from_pretrained`.

        Args:
            model: The base model.
            model_id: A folder that `save_pretrained`, or PEFT, wrote.
            **kwargs: `is_trainable=True` when training goes on.

        Raises:
            UserError: If training would go on with a learned prompt, of which PEFT saves the outcome only.
        """
        is_trainable = kwargs.get("is_trainable", False)
        if is_trainable:
            config = PeftConfig.from_pretrained(model_id)
            if config.is_prompt_learning:
                raise UserError(f"{model_id}: PEFT cannot go on training an adapter of type {config.peft_type.value}")
            _prepare_quantized(model)
        return PeftModel.from_pretrained(model, model_id, is_trainable=is_trainable)


def configure(tuner: str, config_class: type[PeftConfig], **fields: Any) -> PeftConfig:
    """Make PEFT's config of a method.

    Args:
        tuner: The tuner's name, for messages.
        config_class: The config's class.
        **fields: Its fields.

    Raises:
        UserError: If PEFT refuses a value, or the method could not be loaded again.
    """
    init = str(fields.get("init_lora_weights"))
    if init.startswith("pissa_niter") or init in ("eva", "corda", "lora_ga"):
        # These change the base weights by chance, or by data; PEFT keeps neither.
        raise UserError(f"tuner {tuner}: an adapter with init_lora_weights {init!r} cannot be loaded again exactly")
    try:
        return config_class(task_type="CAUSAL_LM", **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"tuner {tuner}: {_one_line(error)}") from error


def wrap(tuner: str, model: torch.nn.Module, config: PeftConfig) -> PeftModel:
    """Put a new adapter on a base model, checking first that it has the modules that the config names.

    Args:
        tuner: The tuner's name, for messages.
        model: The base model, perhaps a quantized one.
        config: What to put on it.

    Raises:
        UserError: If a named module is not in the model, or PEFT refuses the config.
    """
    for option in ("target_modules", "feedforward_modules", "modules_to_save"):
        _check_modules(model, getattr(config, option, None), f"tuner {tuner}: {option}")
    _prepare_quantized(model)
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"tuner {tuner}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepare_quantized(model: torch.nn.Module) -> None:
    """Freeze a quantized model and take its norms to float32, as QLoRA does (arXiv 2305.14314)."""
    if getattr(model, "quantization_method", None) is not None:
        # Gradient checkpointing is switched on by the trainer, for any model alike.
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _check_modules(model: torch.nn.Module, wanted: str | Iterable[str] | None, where: str) -> None:
    """Raise a UserError if one of the wanted names (or the regex, where it is a string) is nobody's."""
    if wanted is None or wanted == "all-linear":
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(wanted, str):
        try:
            matched = any(re.fullmatch(wanted, name) for name in names)
        except re.error as error:
            raise UserError(f"{where}: {wanted!r} is not a regular expression: {error}") from error
        if not matched:
            raise UserError(f"{where}: no module matches {wanted!r}{nearest(wanted, _last_names(names))}")
        return
    for item in wanted:
        if not any(name == item or name.endswith(f".{item}") for name in names):
            raise UserError(f"{where}: the model has no module {item!r}{nearest(item, _last_names(names))}")


def _last_names(names: Iterable[str]) -> set[str]:
    """The last part of each dotted name, without the indices of lists: what users name modules by."""
    return {last for name in names if (last := name.rpartition(".")[2]) and not last.isdigit()}

"""Tuners that put an adapter on a frozen base model with PEFT; the saved folder loads with plain PEFT."""

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Literal, cast

import peft
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel
from pydantic import Field, PositiveInt

from swiftplug.builtin.patterns import matching_names
from swiftplug.builtin.tuners.lora_layer import round_once
from swiftplug.plugin import Tuner, UserError, find_all_linears, nearest

# Fields that record where an adapter came from; PEFT fills them in itself.
_NOT_OPTIONS = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}

# By the end of a model class's name; any other is a language model.
_TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}

# Fields that name modules of the model.
_MODULES = ("target_modules", "feedforward_modules", "modules_to_save")


class Adapter(Tuner):
    """A tuner whose trained weights are a PEFT adapter."""

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
        """Put a saved adapter on its base model; see `Tuner.from_pretrained`.

        Args:
            model: The base model.
            model_id: A folder that `save_pretrained`, or PEFT, wrote.
            **kwargs: `is_trainable=True` when training continues.

        Raises:
            UserError: Training would continue from a learned prompt: PEFT saves only its result, not what is trained.
        """
        is_trainable = kwargs.get("is_trainable", False)
        if is_trainable:
            config = PeftConfig.from_pretrained(model_id)
            if config.is_prompt_learning:
                raise UserError(
                    f"{model_id}: PEFT cannot continue training an adapter of type {config.peft_type.value}"
                )
            _prepare_quantized(model)
        with _tied_weights_allowed():
            return round_once(PeftModel.from_pretrained(model, model_id, is_trainable=is_trainable))

    @staticmethod
    def disabled(model: torch.nn.Module) -> AbstractContextManager[Any] | None:
        """The adapter switched off, unless the base model itself changed too; see `Tuner.disabled`."""
        assert isinstance(model, PeftModel)
        config = model.active_peft_config
        own_weights = getattr(config, "bias", "none") != "none"  # biases are trained in place
        # These change the base weights, or repeat layers.
        moved = str(getattr(config, "init_lora_weights", "")) in ("olora", "pissa", "loftq")
        repeated = getattr(config, "layer_replication", None)
        return None if own_weights or moved or repeated else model.disable_adapter()


class LoRA(Adapter):
    """LoRA (arXiv 2106.09685), and QLoRA on a quantized model: trains low-rank matrices beside frozen linear layers."""

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
            target_modules: Names (or ends of names) of modules, one regular expression for whole names, or
                `all-linear`: every linear layer except the output head.
            modules_to_save: Modules that are trained in full and saved with the adapter.
            bias: Which biases are trained.
            use_rslora: Scale by `lora_alpha / sqrt(r)` instead (rsLoRA, arXiv 2312.03732).
            use_dora: Train magnitude and direction separately (DoRA, arXiv 2402.09353).
            init_lora_weights: How the matrices are initialised; `olora` (arXiv 2406.01775) and `pissa` (arXiv
                2404.02948) start from the base weights and subtract their share from them.

        Raises:
            UserError: The model has no module of a given name, or PEFT rejects a value.
        """
        return _wrap(
            "lora",
            model,
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


class IA3(Adapter):
    """IA3 (arXiv 2205.05638): trains vectors that scale keys, values and feed-forward activations."""

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
            target_modules: Names (or ends of names) of modules, or one regular expression for whole names. None uses
                PEFT's choice for the architecture: keys, values and a feed-forward layer.
            feedforward_modules: The targets whose input is scaled instead of their output.
            modules_to_save: Modules that are trained in full and saved with the adapter.
            init_ia3_weights: Whether the vectors start at one, so that the model is unchanged at first.

        Raises:
            UserError: The model has no module of a given name, or PEFT does not know the architecture.
        """
        return _wrap(
            "ia3",
            model,
            IA3Config,
            target_modules=target_modules,
            feedforward_modules=feedforward_modules,
            modules_to_save=modules_to_save,
            init_ia3_weights=init_ia3_weights,
        )


class Peft(Adapter):
    """Any other adapter of PEFT, by its type and the fields of its config: `{name: peft, type: vera, r: 256}`."""

    @staticmethod
    def prepare_model(  # type: ignore[override]  # `type` has no default, as none is right
        args: Any, model: torch.nn.Module, *, type: str, **fields: Any
    ) -> torch.nn.Module:
        """Wrap a base model; see `Tuner.prepare_model`.

        Args:
            args: The run's arguments.
            model: The base model.
            type: The method, by its name in `peft.PeftType`, in any case: `vera`, `loha`, `randlora`, ...
            **fields: The fields of its config.

        Raises:
            UserError: PEFT has no such method, its config no such field, or the model no module of a given name.
        """
        return _wrap("peft", model, _config_class(type, fields), **fields)

    @staticmethod
    def check_options(*, type: str, **fields: Any) -> None:
        """Reject, before a model is loaded, what `prepare_model` would reject."""
        _make_config("peft", _config_class(type, fields), fields)

    @staticmethod
    def check_run(args: Any, *, type: str, **fields: Any) -> None:
        """Refuse a method that cannot train, or would not see, the head of a model that is no language model."""
        config = _make_config("peft", _config_class(type, fields), fields)
        if config.is_prompt_learning and (args.fsdp or args.deepspeed):
            raise UserError(
                f"tuner peft: PEFT cannot save an adapter of type {type} that FSDP or DeepSpeed shards; use DDP"
            )
        if args.task.head == "language":
            return
        if config.is_prompt_learning:  # its tokens stand before the row's, and hide where a sequence ends
            why = "learns a prompt, behind which the model's head does not find its tokens"
        elif not hasattr(config, "modules_to_save"):
            why = "cannot train the model's head"
        else:
            return
        raise UserError(f"tuner peft: an adapter of type {type} {why}, as this task needs; use lora")


def _config_class(peft_type: str, fields: Iterable[str]) -> type[PeftConfig]:
    """The config class of a PEFT method, checked to have the given fields."""
    known = {name.value: config for name, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    config_class = known.get(peft_type.upper())
    if config_class is None:
        raise UserError(f"tuner peft: PEFT has no type {peft_type!r}{nearest(peft_type.upper(), known)}")
    names = {field.name for field in dataclasses.fields(config_class) if field.init} - _NOT_OPTIONS
    for name in fields:
        if name not in names:
            raise UserError(f"tuner peft: {config_class.__name__} has no field {name!r}{nearest(name, names)}")
    return config_class


def _make_config(
    tuner: str, config_class: type[PeftConfig], fields: dict[str, Any], task_type: str = "CAUSAL_LM"
) -> PeftConfig:
    init = str(fields.get("init_lora_weights"))
    if init.startswith("pissa_niter") or init in ("eva", "corda", "lora_ga"):
        # These change the base weights by random numbers or data, which PEFT does not save.
        raise UserError(f"tuner {tuner}: an adapter with init_lora_weights {init!r} cannot be loaded again exactly")
    try:
        return config_class(task_type=task_type, **copy.deepcopy(fields))  # PEFT changes lists in place
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"tuner {tuner}: {_one_line(error)}") from error


def _wrap(tuner: str, model: torch.nn.Module, config_class: type[PeftConfig], **fields: Any) -> PeftModel:
    """Put a new adapter on a base model, after checking that the model has the modules that the config names."""
    named = {option: _as_names(fields[option]) for option in _MODULES if option in fields}
    # PEFT trains and saves the head of a model of these two types with the adapter.
    task_type = next((kind for end, kind in _TASK_TYPES.items() if type(model).__name__.endswith(end)), "CAUSAL_LM")
    if task_type != "CAUSAL_LM" and named.get("target_modules") == "all-linear":
        named["target_modules"] = find_all_linears(model)  # PEFT's own choice may have the head
    config = _make_config(tuner, config_class, {**fields, **named}, task_type)
    for option in _MODULES:
        _check_modules(model, getattr(config, option, None), f"tuner {tuner}: {option}")
    _prepare_quantized(model)
    try:
        with _tied_weights_allowed():
            return cast(PeftModel, round_once(peft.get_peft_model(model, config)))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(f"tuner {tuner}: {_one_line(error)}") from error


def _as_names(value: Any) -> Any:
    """`q_proj` or `q_proj,v_proj` as a list: as a regular expression for whole names it would match nothing."""
    is_names = isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*(\s*,\s*\w+(\.\w+)*)*", value)
    return re.split(r"\s*,\s*", value) if is_names else value


@contextmanager
def _tied_weights_allowed() -> Iterator[None]:
    """Without PEFT's warning of an adapter on tied weights, which are untied when it is merged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepare_quantized(model: torch.nn.Module) -> None:
    """Freeze a quantized model and convert its norms to float32, as QLoRA does (arXiv 2305.14314)."""
    if getattr(model, "quantization_method", None) is not None:
        # The trainer switches gradient checkpointing on, for every kind of model.
        peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _check_modules(model: torch.nn.Module, wanted: str | Iterable[str] | None, where: str) -> None:
    """Raise a UserError if the model lacks a wanted module, or the one regular expression matches none."""
    if wanted is None or wanted == "all-linear":
        return
    names = [name for name, _ in model.named_modules()]
    if isinstance(wanted, str):
        matching_names(names, [wanted], where=where, noun="module", match=re.Pattern.fullmatch)
        return
    for item in wanted:
        if not any(name == item or name.endswith(f".{item}") for name in names):
            last_parts = {name.rpartition(".")[2] for name in names}
            raise UserError(f"{where}: the model has no module {item!r}{nearest(item, last_parts)}")

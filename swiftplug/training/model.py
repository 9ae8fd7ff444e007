"""Loading the tokenizer and the base model, and the precision that their weights get."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.utils.import_utils import is_bitsandbytes_available

from swiftplug.config.schema import ModelOptions, TrainConfig
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.choice import PluginChoice
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.training.arguments import RunArguments
from swiftplug.training.marker import MARKER, read_marker
from swiftplug.training.plugins import RunPlugins


@dataclass
class ModelSource:
    """Where a run's tokenizer and base model come from.

    Attributes:
        tokenizer: The tokenizer, with a padding token.
        make: Loads or builds the base model; each call gives a fresh one with the same weights.
    """

    tokenizer: Any
    make: Callable[[], torch.nn.Module]


def open_model(config: TrainConfig, plugins: RunPlugins, args: RunArguments) -> ModelSource:
    """Find the model that a config names, and load its tokenizer; weights are loaded when `make` is called.

    Args:
        config: The run's config. Its model is a plugin, a folder, a hub id, or the folder of a run; an adapter that a
            run left is loaded through its tuner and merged.
        plugins: The run's plugins.
        args: The run's arguments.

    Raises:
        UserError: There is no such model, or it holds no causal language model with a tokenizer.
    """
    name = str(config.model and config.model.name)
    if plugins.model is not None:
        if isinstance(plugins.model.bound, str):
            name = plugins.model.bound
        else:
            return _from_plugin(plugins.model, args)
    tokenizer = _load_tokenizer(name, config.model_options)
    return ModelSource(tokenizer, lambda: _load_model(name, config, plugins, args))


def _from_plugin(plugin: LoadedPlugin, args: RunArguments) -> ModelSource:
    """A model that a plugin builds; it comes with its tokenizer, so the first is built at once."""
    built: list[torch.nn.Module] = []

    def build() -> tuple[torch.nn.Module, Any]:
        set_seed(args.seed)  # a resumed run must get the weights that an unbroken one had
        pair = plugin.bound(args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"{plugin.found} returned a {type(pair).__name__}; expected a pair (model, tokenizer)")
        attach_model_meta(pair[0])
        return pair

    def make() -> torch.nn.Module:
        return built.pop() if built else build()[0]

    model, tokenizer = build()
    built.append(model)
    return ModelSource(_with_padding(tokenizer, plugin.found.name), make)


def _load_tokenizer(name: str, options: ModelOptions) -> Any:
    _check_place(name)
    try:
        if not _is_adapter(name):
            AutoConfig.from_pretrained(name, **_hub_options(options))
        tokenizer = AutoTokenizer.from_pretrained(name, **_hub_options(options))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model: cannot load {name!r}: {_first_line(error)}") from error
    return _with_padding(tokenizer, name)


def _with_padding(tokenizer: Any, name: str) -> Any:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model: the tokenizer of {name!r} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_model(name: str, config: TrainConfig, plugins: RunPlugins, args: RunArguments) -> torch.nn.Module:
    if _is_adapter(name):
        return _load_merged(name, config, plugins, args)
    options = config.model_options
    keep_type = args.training_args.bf16 or args.training_args.fp16
    try:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            name,
            # In mixed precision the checkpoint's own type is kept until the tuner has said what trains.
            dtype="auto" if keep_type else torch.float32,
            attn_implementation=options.attn_implementation,
            quantization_config=_quantization(options, args),
            **_hub_options(options),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model: cannot load {name!r}: {_first_line(error)}") from error
    attach_model_meta(model)
    return model


def _load_merged(folder: str, config: TrainConfig, plugins: RunPlugins, args: RunArguments) -> torch.nn.Module:
    """The model that a run left as an adapter: its base model, with the adapter merged in."""
    marker = read_marker(folder)
    assert marker is not None
    where = f"{folder}/{MARKER}"
    registry = plugins.registry
    tuner = registry.resolve("tuner", PluginChoice.model_validate(marker.tuner), where)
    choice = PluginChoice.model_validate(marker.base_model)
    base_plugin = registry.resolve("model", choice, where) if registry.has("model", choice.name) else None
    base_config = config.model_copy(
        update={
            "model": choice,
            "seed": marker.seed,
            # Code that came with a model runs where this run allows it, whatever the folder says.
            "model_options": ModelOptions.model_validate(
                {**marker.model_options, "trust_remote_code": config.model_options.trust_remote_code}
            ),
        }
    )
    base_plugins = replace(plugins, model=base_plugin)
    base = open_model(base_config, base_plugins, RunArguments(base_config, args.training_args)).make()
    model: torch.nn.Module = tuner.bound.from_pretrained(base, folder, is_trainable=False)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    attach_model_meta(model)
    return model


def _is_adapter(name: str) -> bool:
    """Whether a name is the folder of a run that left no whole model."""
    return read_marker(name) is not None and not (Path(name).expanduser() / "config.json").is_file()


def place_of(name: str) -> str:
    """A model's name as it can be found from another folder too."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def set_precision(model: torch.nn.Module, args: RunArguments) -> None:
    """Make trainable weights float32, and frozen ones the type of autocast; quantized weights stay as they are."""
    half = torch.bfloat16 if args.training_args.bf16 else torch.float16 if args.training_args.fp16 else torch.float32
    quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif parameter.is_floating_point() and not quantized:
            parameter.data = parameter.data.to(half)


def _hub_options(options: ModelOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def _quantization(options: ModelOptions, args: RunArguments) -> Any:
    """QLoRA's settings (Dettmers et al., arXiv 2305.14314) for `model_options.quantization`."""
    if options.quantization is None:
        return None
    if not is_bitsandbytes_available():
        raise UserError("model_options.quantization: needs bitsandbytes; pip install 'swiftplug[quant]'")
    if options.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    half = torch.bfloat16 if args.training_args.bf16 else torch.float16 if args.training_args.fp16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half,
    )


def _check_place(name: str) -> None:
    """Tell a mistyped folder from a hub id before the hub is asked."""
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (path.parent.is_dir() and "/" in name)
    if path.exists():
        if not path.is_dir():
            raise UserError(f"model: {name!r} is a file; expected a folder with config.json, or a hub id")
        if not (path / "config.json").is_file() and read_marker(name) is None:
            raise UserError(f"model: the folder {name!r} has no config.json; expected a model, or the folder of a run")
    elif looks_local:
        siblings = (
            [str(path.parent / item.name) for item in path.parent.iterdir() if item.is_dir()]
            if path.parent.is_dir()
            else []
        )
        raise UserError(f"model: no folder {name!r}{nearest(name, siblings)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

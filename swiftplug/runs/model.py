"""Loading the tokenizer and the model that a run names: a folder, a hub id, a plugin, or what another run left."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_bitsandbytes_available

from swiftplug.config.schema import ModelOptions
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.runs.marker import MARKER, Marker, read_marker


@dataclass(frozen=True)
class ModelRequest:
    """Which model a run wants, and how.

    Attributes:
        name: A folder, a hub id, the folder of a run, or what the plugin is called.
        plugin: The model plugin; None for a folder or hub id.
        registry: Knows the plugins that a run's folder may name.
        options: How a folder or hub id is loaded.
        seed: What a model plugin may draw its weights from.
        arguments: What a model plugin is called with, for a model and its seed.
        dtype: Of the weights as they are loaded; "auto" keeps the checkpoint's own.
        compute_dtype: Of the arithmetic on weights that are quantized.
    """

    name: str
    plugin: LoadedPlugin | None
    registry: Registry
    options: ModelOptions
    seed: int
    arguments: Callable[[PluginChoice, int], Any]
    dtype: torch.dtype | str
    compute_dtype: torch.dtype


@dataclass
class ModelSource:
    """Where a run's tokenizer and base model come from.

    Attributes:
        tokenizer: The tokenizer, with a padding token.
        make: Loads or builds the base model; each call gives a fresh one with the same weights.
    """

    tokenizer: Any
    make: Callable[[], torch.nn.Module]


def open_model(request: ModelRequest) -> ModelSource:
    """Find a model and load its tokenizer; weights are loaded when `make` is called.

    An adapter that a run left is loaded through its tuner and merged.

    Raises:
        UserError: There is no such model, or it holds no causal language model with a tokenizer.
    """
    transformers_logging.disable_progress_bar()  # of reading and writing weights; what is downloaded still shows
    name = request.name
    if request.plugin is not None:
        if not isinstance(request.plugin.bound, str):
            return _from_plugin(request.plugin, request)
        name = request.plugin.bound
    tokenizer = _load_tokenizer(name, request.options)
    return ModelSource(tokenizer, lambda: _load_model(name, request))


def open_base_model(folder: str, request: ModelRequest) -> ModelSource:
    """The base model that an adapter's folder names, as the run that left the adapter had it.

    Args:
        folder: The folder of a run.
        request: What the run at hand wants of a model; the folder says which one, its seed and its options.

    Raises:
        UserError: The folder is of no run, or its base model is not there.
    """
    marker = _marker_of(folder)
    registry, choice = request.registry, PluginChoice.model_validate(marker.base_model)
    has = registry.has("model", choice.name)
    plugin = registry.resolve("model", choice, f"{folder}/{MARKER}") if has else None
    # Code that came with a model runs where this run allows it, whatever the folder says.
    trusted = {**marker.model_options, "trust_remote_code": request.options.trust_remote_code}
    options = ModelOptions.model_validate(trusted)
    return open_model(replace(request, name=choice.name, plugin=plugin, options=options, seed=marker.seed))


def load_adapter(model: torch.nn.Module, folder: str, registry: Registry) -> torch.nn.Module:
    """Put an adapter onto its base model, and merge it into the weights where its kind can.

    Args:
        model: The base model.
        folder: What a run left, which is loaded through its tuner, or an adapter of PEFT.
        registry: Knows the tuner.

    Raises:
        UserError: The folder holds no adapter.
    """
    marker = read_marker(folder)
    if marker is not None:
        tuner = registry.resolve("tuner", PluginChoice.model_validate(marker.tuner), f"{folder}/{MARKER}")
        model = tuner.bound.from_pretrained(model, folder, is_trainable=False)
    else:
        check_adapter(folder)
        model = PeftModel.from_pretrained(model, folder)
    # Learned prompts have no weights to merge into, and quantized weights would lose by it.
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning and not _is_quantized(model):
        model = model.merge_and_unload()
    attach_model_meta(model)
    return model


def check_adapter(folder: str) -> None:
    """Refuse a folder that holds no adapter, before anything is loaded.

    Raises:
        UserError: It is no folder, or neither a run nor PEFT left it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"--adapter: no folder {folder!r}")
    if read_marker(path) is None and not (path / "adapter_config.json").is_file():
        raise UserError(f"--adapter: {folder!r} holds neither {MARKER} (of a run) nor adapter_config.json (of PEFT)")


def is_adapter_run(name: str) -> bool:
    """Whether a name is the folder of a run that left no whole model."""
    return read_marker(name) is not None and not (Path(name).expanduser() / "config.json").is_file()


def _marker_of(folder: str) -> Marker:
    marker = read_marker(folder)
    if marker is None:
        raise UserError(f"{folder}: has no {MARKER}, so its base model is unknown; name it with --model")
    return marker


def _is_quantized(model: torch.nn.Module) -> bool:
    return bool(getattr(model, "is_quantized", False))


def _from_plugin(plugin: LoadedPlugin, request: ModelRequest) -> ModelSource:
    """A model that a plugin builds; it comes with its tokenizer, so the first is built at once."""
    built: list[torch.nn.Module] = []
    args = request.arguments(PluginChoice(name=request.name, options=plugin.options), request.seed)

    def build() -> tuple[torch.nn.Module, Any]:
        set_seed(request.seed)  # a resumed run must get the weights that an unbroken one had
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
        if not is_adapter_run(name):
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


def _load_model(name: str, request: ModelRequest) -> torch.nn.Module:
    if is_adapter_run(name):
        return load_adapter(open_base_model(name, request).make(), name, request.registry)
    try:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=request.dtype,
            attn_implementation=request.options.attn_implementation,
            quantization_config=_quantization(request),
            **_hub_options(request.options),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model: cannot load {name!r}: {_first_line(error)}") from error
    attach_model_meta(model)
    return model


def place_of(name: str) -> str:
    """A model's name as it can be found from another folder too."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _hub_options(options: ModelOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def _quantization(request: ModelRequest) -> Any:
    """QLoRA's settings (Dettmers et al., arXiv 2305.14314) for `model_options.quantization`."""
    bits = request.options.quantization
    if bits is None:
        return None
    if not is_bitsandbytes_available():
        raise UserError("model_options.quantization: needs bitsandbytes; pip install 'swiftplug[quant]'")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=request.compute_dtype,
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

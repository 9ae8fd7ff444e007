"""The model that a run names: a folder, a hub id, a plugin's, or what another run left."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_bitsandbytes_available

from swiftplug.config.schema import ModelOptions
from swiftplug.errors import UserError, nearest
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice, Registry
from swiftplug.runs.folder import MARKER, Marker

if TYPE_CHECKING:
    from swiftplug.runs.arguments import Arguments


class RunModel:
    """The model of a run, to be loaded as often as it is needed; each time it has the same weights.

    Args:
        args: The run's arguments: its config, the model plugin if it names one, and what such a plugin is called with.
    """

    def __init__(self, args: "Arguments") -> None:
        self._args = args
        self._config: Any = args.config
        self._registry = args.plugins.registry
        self._built: torch.nn.Module | None = None  # by a model plugin, together with its tokenizer
        self._adapter: str | None = getattr(args.config, "adapter", None)
        if self._config.model is None and self._adapter is None:
            raise UserError("no model; name a folder, a hub id or a model plugin with --model or the key 'model'")

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token."""
        if self._config.model is None:
            return self._base_of(self._adapter).load_tokenizer()
        name = self._checkpoint
        if name is not None:
            return load_tokenizer(name, self._config.model_options)
        self._built, tokenizer = self._build()
        return _with_padding_token(tokenizer, self._config.model.name)

    def load(self, dtype: torch.dtype | None) -> torch.nn.Module:
        """The model, its adapters merged where they can be; `dtype` None keeps the type of the saved weights."""
        name = self._checkpoint if self._config.model is not None else None
        if self._config.model is None:
            model = self._base_of(self._adapter).load(dtype)
        elif name is None:
            model = self._built if self._built is not None else self._build()[0]
            self._built = None
        elif is_adapter_run(name):
            model = load_adapter(self._base_of(name).load(dtype), name, self._registry)
        else:
            training = self._args.training_args
            compute_dtype = autocast_dtype(training) if training else dtype or torch.float32
            model = load_weights(name, self._config.model_options, dtype, compute_dtype)
        if self._adapter is not None:
            model = load_adapter(model, self._adapter, self._registry)
        return model.eval()

    def export(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> str:
        """The folder or hub id where the model is a whole checkpoint; where it is none yet, one is written."""
        name = self._checkpoint if self._config.model is not None else None
        if name is not None and self._adapter is None and not is_adapter_run(name):
            return name
        model: Any = self.load(None)
        if isinstance(model, PeftModel):
            raise UserError("model: its adapter cannot be merged into the weights, so the model cannot be exported")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    @property
    def _checkpoint(self) -> str | None:
        """The folder or hub id that the config's model is; None for a model that a plugin builds."""
        plugin = self._args.plugins.model
        if plugin is None:
            return str(self._config.model.name)
        return plugin.bound if isinstance(plugin.bound, str) else None

    def _base_of(self, folder: str | None) -> "RunModel":
        """The base model of an adapter, as the run had it that left the adapter."""
        marker = Marker.read(str(folder))
        if marker is None:
            raise UserError(f"{folder}: has no {MARKER}, so its base model is unknown; name it with --model")
        choice = PluginChoice.model_validate(marker.base_model)
        plugins: list[LoadedPlugin] = []
        if self._registry.has("model", choice.name):
            plugins = [self._registry.resolve("model", choice, f"{folder}/{MARKER}")]
        # Code that came with a model runs where this run allows it, whatever the folder says.
        trusted = {**marker.model_options, "trust_remote_code": self._config.model_options.trust_remote_code}
        changed = {"model": choice, "model_options": ModelOptions.model_validate(trusted), "seed": marker.seed}
        if self._adapter is not None:
            changed["adapter"] = None
        return RunModel(self._args.with_model(self._config.model_copy(update=changed), plugins))

    def _build(self) -> tuple[torch.nn.Module, Any]:
        """What the model plugin returns; a resumed run must get the weights of an unbroken one, so a seed is set."""
        plugin: Any = self._args.plugins.model
        set_seed(self._config.seed)
        pair = plugin.bound(self._args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"{plugin.found} returned a {type(pair).__name__}; expected a pair (model, tokenizer)")
        attach_model_meta(pair[0])
        return pair


def autocast_dtype(training_args: TrainingArguments) -> torch.dtype:
    """The type that a training run computes in; float32 where there is no autocast."""
    return torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32


def load_tokenizer(name: str, options: ModelOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id that holds a language model, and give it a padding token.

    Raises:
        UserError: There is no such model, or it has no usable tokenizer.
    """
    _check_name(name)
    transformers_logging.disable_progress_bar()  # of reading and writing weights; downloads still show theirs
    try:
        if not is_adapter_run(name):
            AutoConfig.from_pretrained(name, **_hub_options(options))
        tokenizer = AutoTokenizer.from_pretrained(name, **_hub_options(options))
    except (OSError, ValueError, KeyError) as error:
        raise _load_error(name, error) from error
    return _with_padding_token(tokenizer, name)


def _with_padding_token(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Let a tokenizer without a padding token pad with its end token."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model: the tokenizer of {name!r} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(
    name: str, options: ModelOptions, dtype: torch.dtype | None, compute_dtype: torch.dtype
) -> torch.nn.Module:
    """Load a causal language model from a folder or hub id.

    Args:
        name: The folder or hub id.
        options: How to load it.
        dtype: The type of its weights; None keeps the type that they were saved in.
        compute_dtype: The type of the arithmetic on quantized weights.

    Raises:
        UserError: It cannot be loaded.
    """
    try:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype or "auto",
            attn_implementation=options.attn_implementation,
            quantization_config=_quantization(options.quantization, compute_dtype),
            **_hub_options(options),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _load_error(name, error) from error
    attach_model_meta(model)
    return model


def load_adapter(model: torch.nn.Module, folder: str, registry: Registry) -> torch.nn.Module:
    """Put an adapter onto its base model, and merge it into the weights where its kind can be.

    Args:
        model: The base model.
        folder: What a run left, which is loaded through its tuner, or an adapter of PEFT.
        registry: Knows the tuner.

    Raises:
        UserError: The folder holds no adapter.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"--adapter: no folder {folder!r}")
    dtypes = {parameter: parameter.dtype for parameter in model.parameters()}
    dtype = next(iter(dtypes.values()))
    marker = Marker.read(path)
    if marker is not None:
        tuner = registry.resolve("tuner", PluginChoice.model_validate(marker.tuner), f"{folder}/{MARKER}")
        model = tuner.bound.from_pretrained(model, folder, is_trainable=False)
    elif (path / "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(model, folder)
    else:
        raise UserError(f"--adapter: {folder!r} holds neither {MARKER} (of a run) nor adapter_config.json (of PEFT)")
    # Learned prompts have no weights to merge into, and quantized weights would lose precision by it.
    is_quantized = getattr(model, "is_quantized", False)
    if isinstance(model, PeftModel) and not model.active_peft_config.is_prompt_learning and not is_quantized:
        model = model.merge_and_unload()
    # What a tuner saved in float32 must compute with a base that was loaded in half precision.
    for parameter in model.parameters():
        if parameter.is_floating_point() and not is_quantized:
            parameter.data = parameter.data.to(dtypes.get(parameter, dtype))
    attach_model_meta(model)
    return model


def is_adapter_run(name: str) -> bool:
    """Whether a name is the folder of a run that left no whole model."""
    return Marker.read(name) is not None and not (Path(name).expanduser() / "config.json").is_file()


def absolute_name(name: str) -> str:
    """A model's name as it can be found from another folder too."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _hub_options(options: ModelOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def _quantization(bits: str | None, compute_dtype: torch.dtype) -> Any:
    """QLoRA's settings (Dettmers et al., arXiv 2305.14314) for `model_options.quantization`."""
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
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _check_name(name: str) -> None:
    """Tell a mistyped folder from a hub id before the hub is asked."""
    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or (path.parent.is_dir() and "/" in name)
    if path.exists():
        if not path.is_dir():
            raise UserError(f"model: {name!r} is a file; expected a folder with config.json, or a hub id")
        if not (path / "config.json").is_file() and Marker.read(name) is None:
            raise UserError(f"model: the folder {name!r} has no config.json; expected a model, or the folder of a run")
    elif looks_local:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        folders = [str(path.parent / item.name) for item in beside if item.is_dir()]
        raise UserError(f"model: no folder {name!r}{nearest(name, folders)}")


def _load_error(name: str, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(f"model: cannot load {name!r}: {reason}")

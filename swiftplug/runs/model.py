"""Loads the weights of a folder or hub id, and adapters."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_bitsandbytes_available, is_flash_attn_2_available

from swiftplug.config.schema import ModelOptions
from swiftplug.errors import UserError, nearest
from swiftplug.plugin import Labels
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import Registry
from swiftplug.runs.folder import MARKER, Head, Marker, load_tuner
from swiftplug.runs.tokenizer import check_name, hub_options, load_error

GENERATION_CONFIG = "generation_config.json"

# By the kind of head: what loads a model with it, and the classes of such models.
_AUTO: dict[str, Any] = {
    "language": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    "sequence": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    "token": (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
}


def autocast_dtype(training_args: TrainingArguments) -> torch.dtype:
    """The dtype that a training run computes in; float32 without autocast."""
    return torch.bfloat16 if training_args.bf16 else torch.float16 if training_args.fp16 else torch.float32


def load_config(name: str, options: ModelOptions) -> PreTrainedConfig:
    """Load the config of a model; raises a `UserError` if Transformers cannot."""
    check_name(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **hub_options(options))
        return config
    except (OSError, ValueError, KeyError) as error:
        raise load_error(name, error) from error


def check_loadable(options: ModelOptions) -> None:
    """Check, before a model is loaded, that the libraries that its options need are installed.

    Raises:
        UserError: One is missing, or there is no such attention implementation.
    """
    if options.quantization is not None and not is_bitsandbytes_available():
        raise UserError("model_options.quantization: needs bitsandbytes; pip install 'swiftplug[quant]'")
    attention = options.attn_implementation
    if attention is None or "/" in attention:  # a kernel on the hub
        return
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if attention not in known:
        raise UserError(f"model_options.attn_implementation: unknown {attention!r}{nearest(attention, known)}")
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError("model_options.attn_implementation: flash_attention_2 needs flash-attn; pip install flash-attn")


def load_weights(
    name: str, options: ModelOptions, dtype: torch.dtype | None, compute_dtype: torch.dtype, head: Head | None
) -> torch.nn.Module:
    """Load a model from a folder or hub id.

    Args:
        name: The folder or hub id.
        options: How to load it.
        dtype: The dtype of the weights; None keeps the one that they were saved in.
        compute_dtype: The dtype of computation with quantized weights.
        head: The head that it gets if it has that of a language model; None leaves it that. A checkpoint with another
            head is loaded with its own, since a weight of the same name and shape may stand for something else.

    Raises:
        UserError: It cannot be loaded.
    """
    check_name(name)
    transformers_logging.disable_progress_bar()  # of reading and writing weights; downloads still show theirs
    try:
        config = load_config(name, options)
        own = [kind for kind in ("sequence", "token") if own_labels(config, kind)]
        if head and not own:
            check_head(config, head.kind, f"model: {name}")
            set_labels(config, head.labels)
        auto, _ = _AUTO[own[0] if head and own else head.kind if head else "language"]
        model: torch.nn.Module = auto.from_pretrained(
            name,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=options.attn_implementation,
            quantization_config=_quantization(options.quantization, compute_dtype),
            **hub_options(options),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise load_error(name, error) from error
    attach_model_meta(model)
    return model


def auto_class(kind: str) -> Any:
    """The `AutoModelFor…` that loads a model with a head of a kind (see `Task.head`)."""
    return _AUTO[kind][0]


def model_class(config: PreTrainedConfig, kind: str) -> Any:
    """The class of Transformers' model with a head of a kind (see `Task.head`) for a config; None if it has none."""
    return _AUTO[kind][1].get(type(config), None)


def check_head(config: PreTrainedConfig, kind: str, where: str) -> None:
    """Check that Transformers has a model with a head of a kind for a config; raises a `UserError` if not."""
    if model_class(config, kind) is None and _AUTO[kind][0].__name__ not in getattr(config, "auto_map", {}):
        raise UserError(f"{where}: Transformers has no {config.model_type} model for {kind} classification")


def own_labels(config: PreTrainedConfig, kind: str, architecture: str | None = None) -> Labels | None:
    """The labels of a checkpoint whose head is of a kind; None if it has another one.

    Args:
        config: Its config.
        kind: The kind of head.
        architecture: The name of its class; None is that in the config.
    """
    suffix = _AUTO[kind][0].__name__.removeprefix("AutoModel")
    if not (architecture or (config.architectures or [""])[0]).endswith(suffix):
        return None
    names: Any = config.id2label
    return Labels(tuple(names[index] for index in sorted(names)), config.problem_type)


def set_labels(config: PreTrainedConfig, labels: Labels) -> None:
    """Write labels into the config of a model."""
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.problem_type = labels.problem_type


def keeps_head(own: Labels | None, wanted: Labels) -> bool:
    """Whether a head with labels of its own gives the wanted numbers; if it has no names for them, any are right."""
    if own is None or (own.problem_type or wanted.problem_type) != wanted.problem_type:
        return False
    return own.names in (wanted.names, Labels.unnamed(len(wanted.names)).names)


def with_head(model: torch.nn.Module, head: Head, pad_token_id: int, *, trust_remote_code: bool) -> torch.nn.Module:
    """A model with a head: the model itself if its head is of this kind with these labels, else all but its head.

    Args:
        model: A Transformers model.
        head: The head; a new one is made of random numbers.
        pad_token_id: The token of the padding behind a sequence.
        trust_remote_code: Whether a new head may be that of custom model code.

    Raises:
        UserError: Transformers has no such model.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = inner.config
    keeps = keeps_head(own_labels(config, head.kind, type(inner).__name__), head.labels)
    set_labels(config, head.labels)
    config.get_text_config().pad_token_id = pad_token_id
    if keeps:
        return model
    check_head(config, head.kind, "model")
    if isinstance(model, PeftModel):
        raise UserError(f"model: has an adapter that PEFT cannot merge, so it cannot get a head for {head.kind}s")
    auto, _ = _AUTO[head.kind]
    with torch.device("meta"):  # all but the head is there already
        changed: Any = auto.from_config(config, trust_remote_code=trust_remote_code)
    if type(changed.base_model) is not type(inner.base_model):
        raise UserError(f"model: a {type(inner).__name__} cannot become a {type(changed).__name__}")
    changed.config = config  # also the decoder's
    setattr(changed, changed.base_model_prefix, inner.base_model)
    for name, module in changed.named_children():
        if name != changed.base_model_prefix:
            module.to_empty(device=inner.device).apply(changed._init_weights).to(inner.dtype)
    attach_model_meta(changed)
    return cast(torch.nn.Module, changed)


def end_where_trained(model: Any, end_ids: list[int]) -> None:
    """Let generation end where training ends an answer, also by the generation config that is saved with a model."""
    config = getattr(model, "generation_config", None)
    if (
        config is not None
        and end_ids
        and config.eos_token_id not in (end_ids, end_ids[0] if len(end_ids) == 1 else None)
    ):
        config.eos_token_id = end_ids


def load_adapter(
    model: torch.nn.Module, folder: str, registry: Registry, dtype: torch.dtype | None, *, merge: bool = True
) -> torch.nn.Module:
    """Load an adapter onto its base model.

    Args:
        model: The base model.
        folder: That of a run, whose adapter is loaded through its tuner, or of a PEFT adapter.
        registry: Where the tuner is found.
        dtype: The one that was asked of the base model.
        merge: Whether to merge the adapter into the weights if that is possible.

    Raises:
        UserError: The folder holds no adapter.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"--adapter: no folder {folder!r}")
    dtypes = {parameter: parameter.dtype for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # `merge_adapter` unties them
        if Marker.read(path) is not None:
            model = load_tuner(folder, registry).from_pretrained(model, folder, is_trainable=False)
        elif (path / "adapter_config.json").is_file():
            model = PeftModel.from_pretrained(model, folder)
        else:
            raise UserError(
                f"--adapter: {folder!r} holds neither {MARKER} (of a run) nor adapter_config.json (of PEFT)"
            )
        if (path / GENERATION_CONFIG).is_file():
            inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
            inner.generation_config = GenerationConfig.from_pretrained(path)
        # Quantized weights would lose precision.
        is_quantized = getattr(model, "is_quantized", False)
        if merge and isinstance(model, PeftModel) and not is_quantized:
            model = merge_adapter(model)
    # Weights that a tuner saved in float32 must match a base that was loaded in half precision.
    for parameter in model.parameters() if dtype and not is_quantized else ():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtypes.get(parameter, dtype))
    attach_model_meta(model)
    return model


def merge_adapter(model: PeftModel) -> torch.nn.Module:
    """Merge an adapter into the weights; the result computes the same, and is still a `PeftModel` if that cannot be."""
    if model.active_peft_config.is_prompt_learning:
        return model
    # A layer with an adapter gets weights of its own, so that a layer that it was tied to does not change with it.
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            if isinstance(getattr(layer, "base_layer", None), AuxiliaryTrainingWrapper):
                return model  # PEFT would lose what is trained inside of the layer, such as single tokens
            base = layer.get_base_layer()
            for name, weight in list(base.named_parameters(recurse=False)):
                if uses[id(weight)] > 1:
                    setattr(base, name, torch.nn.Parameter(weight.detach().clone(), weight.requires_grad))
    try:
        merged: torch.nn.Module = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError):
        return model  # PEFT cannot merge this method; layers that it has merged by then compute the same
    if isinstance(merged, PreTrainedModel) and merged.config.tie_word_embeddings:
        head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
        merged.config.tie_word_embeddings = head is None or head.weight is embeddings.weight
    return merged


def _quantization(bits: str | None, compute_dtype: torch.dtype) -> Any:
    """QLoRA's settings (Dettmers et al., arXiv 2305.14314) for `model_options.quantization`."""
    if bits is None:
        return None
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )

"""The parts of a model by name, found by inspecting its modules, so that this works for any decoder model."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


class ArchName(str):
    """A key of `MODEL_ARCH_MAPPING` that has the attributes of its `ModelKeys` too, as in later versions of SWIFT 3."""

    def __getattr__(self, name: str) -> Any:
        return getattr(MODEL_ARCH_MAPPING.get(self), name)


@dataclass(frozen=True)
class ModelKeys:
    """Dotted paths of an architecture's parts, with `{}` for the index of a layer; None for a part that it lacks.

    Attributes:
        arch_name: The key in `MODEL_ARCH_MAPPING`.
        embedding: The token embeddings, such as `model.embed_tokens`.
        module_list: The list of layers, such as `model.layers`.
        lm_head: The output head, such as `lm_head`.
        attention: The attention of a layer, such as `model.layers.{}.self_attn`.
        q_proj: The query projection of the attention.
        k_proj: The key projection of the attention.
        v_proj: The value projection of the attention.
        qkv_proj: The query, key and value projections, if they are one module.
        o_proj: The output projection of the attention.
        mlp: The feed-forward part of a layer, such as `model.layers.{}.mlp`.
        down_proj: The last projection of the feed-forward part.
    """

    arch_name: str | None = None
    embedding: str | None = None
    module_list: str | None = None
    lm_head: str | None = None
    attention: str | None = None
    q_proj: str | None = None
    k_proj: str | None = None
    v_proj: str | None = None
    qkv_proj: str | None = None
    o_proj: str | None = None
    mlp: str | None = None
    down_proj: str | None = None


MODEL_ARCH_MAPPING: dict[str, ModelKeys] = {}
"""The parts of each architecture loaded in this process, by model type (`llama`, `gpt2`...)."""

_ATTENTION = re.compile("attn|attention", re.IGNORECASE)
_FEED_FORWARD = re.compile("mlp|ffn|feed_?forward|moe|expert", re.IGNORECASE)
_GATE = re.compile("(gate|router)$")
_INPUTS = {
    "q_proj": re.compile("w?q(uery)?(_proj)?"),
    "k_proj": re.compile("w?k(ey)?(_proj)?"),
    "v_proj": re.compile("w?v(alue)?(_proj)?"),
    "qkv_proj": re.compile("w?qkv(_proj)?|c_attn|query_key_value|in_proj_qkvz?", re.IGNORECASE),
}


def attach_model_meta(model: Any) -> None:
    """Set `model.model_meta.model_arch`, and add the architecture to `MODEL_ARCH_MAPPING` if it is new.

    Args:
        model: A Transformers model that no tuner has wrapped yet.
    """
    arch = model.config.model_type
    if arch not in MODEL_ARCH_MAPPING:
        MODEL_ARCH_MAPPING[arch] = find_model_keys(model)
    model.model_meta = SimpleNamespace(model_arch=ArchName(arch))


def find_model_keys(model: Any) -> ModelKeys:
    """Find the parts of a model from its modules.

    The layers are the module list with the most parameters. In a layer, the attention and the feed-forward part are
    recognized by the names and classes of its children. If layers differ (hybrid models), the first of those with the
    most parts represents all.

    Args:
        model: A Transformers model that no tuner has wrapped.

    Returns:
        The paths; None for parts that the model does not have.
    """
    layers_name, layers = _layers(model)
    parts = max((_parts_of_layer(layer) for layer in layers), key=len, default={})
    return ModelKeys(
        arch_name=model.config.model_type,
        embedding=_name_of(model, model.get_input_embeddings()),
        module_list=layers_name,
        lm_head=_name_of(model, model.get_output_embeddings()),
        **{key: f"{layers_name}.{{}}.{path}" for key, path in parts.items()},
    )


def _layers(model: "nn.Module") -> tuple[str | None, Iterable["nn.Module"]]:
    from torch.nn import ModuleList

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, ModuleList)]
    return max(
        lists, key=lambda named: sum(parameter.numel() for parameter in named[1].parameters()), default=(None, [])
    )


def _parts_of_layer(layer: "nn.Module") -> dict[str, str]:
    """Paths inside a layer, by the names of `ModelKeys`."""
    parts: dict[str, str] = {}
    attention = _first_child(layer, _ATTENTION)
    if attention:
        parts["attention"] = attention
        for linear in _linear_names(layer.get_submodule(attention)):
            leaf = linear.rpartition(".")[2]
            # A linear layer that is no input projection is the output projection; the last one counts.
            key = next((key for key, pattern in _INPUTS.items() if pattern.fullmatch(leaf)), "o_proj")
            parts[key] = f"{attention}.{linear}"
    mlp = _first_child(layer, _FEED_FORWARD)
    if mlp:
        parts["mlp"] = mlp
        for linear in _linear_names(layer.get_submodule(mlp)):
            if not _GATE.search(linear):
                parts["down_proj"] = f"{mlp}.{linear}"
    else:
        # Some layers (those of OPT) hold the two matrices of the feed-forward part directly.
        own = [name for name in _linear_names(layer) if "." not in name]
        if own:
            parts["mlp"] = parts["down_proj"] = own[-1]
    return parts


def _first_child(layer: "nn.Module", pattern: re.Pattern[str]) -> str | None:
    """The first child with matrices whose name, or else whose class name, matches."""
    children = [
        (name, module) for name, module in layer.named_children() if any(p.dim() > 1 for p in module.parameters())
    ]
    by_name = (name for name, _ in children if pattern.search(name))
    by_class = (name for name, module in children if pattern.search(type(module).__name__))
    return next(by_name, None) or next(by_class, None)


def _name_of(model: "nn.Module", part: "nn.Module | None") -> str | None:
    return next((name for name, module in model.named_modules() if module is part), None)


def find_all_linears(model: Any) -> list[str]:
    """The names of all linear layers except the output head, including quantized ones and GPT-2's `Conv1D`.

    Args:
        model: A Transformers model that no tuner has wrapped.

    Returns:
        Sorted names for PEFT's `target_modules`, which match these layers and no other module: usually the last part of
        a layer's path, and the whole path where another module has the same last part.

    Example:
        >>> find_all_linears(llama)
        ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']
    """
    head = _name_of(model, model.get_output_embeddings())
    # What is outside of a classifier's base model is its head.
    decoder = "" if head or model.base_model is model else f"{model.base_model_prefix}."
    linears = {name for name in _linear_names(model) if name != head and name.startswith(decoder)}
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in linears}
    leaves = {name: name.rpartition(".")[2] for name in linears}
    return sorted({name if leaf in others else leaf for name, leaf in leaves.items()})


def _linear_names(model: "nn.Module") -> Iterator[str]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        # Quantized layers come from many libraries without a common base class, but have this word in their names.
        quantized = "Linear" in type(module).__name__ and not any(module.children())
        if isinstance(module, Linear | Conv1D) or quantized:
            yield name

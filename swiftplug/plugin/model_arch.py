"""The parts of a model by name, found from its modules, so that any decoder model has them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelKeys:
    """Dotted paths of the parts of an architecture, with `{}` for the index of a layer; None for a part it lacks.

    Attributes:
        arch_name: The key of `MODEL_ARCH_MAPPING`.
        embedding: The token embeddings, `model.embed_tokens`.
        module_list: The list of layers, `model.layers`.
        lm_head: The output head, `lm_head`.
        attention: The attention of a layer, `model.layers.{}.self_attn`.
        q_proj: Its query projection.
        k_proj: Its key projection.
        v_proj: Its value projection.
        qkv_proj: The three in one, where they are one module.
        o_proj: Its output projection.
        mlp: The feed-forward part of a layer, `model.layers.{}.mlp`.
        down_proj: The projection that ends it.
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


@dataclass(frozen=True)
class ModelMeta:
    """What a loaded model knows about itself.

    Attributes:
        model_arch: Its key in `MODEL_ARCH_MAPPING`.
    """

    model_arch: str


MODEL_ARCH_MAPPING: dict[str, ModelKeys] = {}
"""The parts of every architecture that was loaded in this process, by its model type (`llama`, `gpt2`...)."""

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
    """Give a freshly loaded model its `model_meta`, and its architecture a place in `MODEL_ARCH_MAPPING`.

    Args:
        model: A Transformers model, not wrapped by a tuner yet.
    """
    arch = model.config.model_type
    if arch not in MODEL_ARCH_MAPPING:
        MODEL_ARCH_MAPPING[arch] = find_model_keys(model)
    model.model_meta = ModelMeta(arch)


def find_model_keys(model: Any) -> ModelKeys:
    """The parts of a model, from its modules.

    The layers are the outermost module list with the most parameters. In a layer, attention and feed-forward part are
    told by the names and classes of its children. Where layers differ (hybrid models), the first with the most parts
    stands for all.

    Args:
        model: A Transformers model, not wrapped by a tuner.

    Returns:
        The paths; those that the model has no module for are None.
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
    return max(lists, key=lambda named: sum(it.numel() for it in named[1].parameters()), default=(None, []))


def _parts_of_layer(layer: "nn.Module") -> dict[str, str]:
    """Paths inside a layer, by the names of `ModelKeys`."""
    parts: dict[str, str] = {}
    attention = _first_child(layer, _ATTENTION)
    if attention:
        parts["attention"] = attention
        for linear in _linear_names(layer.get_submodule(attention)):
            leaf = linear.rpartition(".")[2]
            # What is no input projection comes last in the end: the output projection.
            key = next((key for key, pattern in _INPUTS.items() if pattern.fullmatch(leaf)), "o_proj")
            parts[key] = f"{attention}.{linear}"
    mlp = _first_child(layer, _FEED_FORWARD)
    if mlp:
        parts["mlp"] = mlp
        for linear in _linear_names(layer.get_submodule(mlp)):
            if not _GATE.search(linear):
                parts["down_proj"] = f"{mlp}.{linear}"
    else:
        # Some layers (OPT's) hold the two matrices of the feed-forward part themselves.
        own = [name for name in _linear_names(layer) if "." not in name]
        if own:
            parts["mlp"] = parts["down_proj"] = own[-1]
    return parts


def _first_child(layer: "nn.Module", pattern: re.Pattern[str]) -> str | None:
    """The first child with a matrix in it whose name, or else whose class, matches."""
    children = [
        (name, module) for name, module in layer.named_children() if any(p.dim() > 1 for p in module.parameters())
    ]
    by_name = (name for name, _ in children if pattern.search(name))
    by_class = (name for name, module in children if pattern.search(type(module).__name__))
    return next(by_name, None) or next(by_class, None)


def _name_of(model: "nn.Module", part: "nn.Module | None") -> str | None:
    return next((name for name, module in model.named_modules() if module is part), None)


def find_all_linears(model: Any) -> list[str]:
    """The linear layers to tune: all of them, quantized ones and GPT-2's `Conv1D` too, without the output head.

    Args:
        model: A Transformers model, not wrapped by a tuner.

    Returns:
        Sorted names for PEFT's `target_modules`, which match these layers and no other module: the last part of a
        layer's path, as a rule; whole paths for those that share it with something else.

    Example:
        >>> find_all_linears(llama)
        ['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']
    """
    head = _name_of(model, model.get_output_embeddings())
    linears = {name for name in _linear_names(model) if name != head}
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in linears}
    leaves = {name: name.rpartition(".")[2] for name in linears}
    return sorted({name if leaf in others else leaf for name, leaf in leaves.items()})


def _linear_names(model: "nn.Module") -> Iterator[str]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        # Quantized layers come from many libraries, with no base class in common but with this word in their names.
        quantized = "Linear" in type(module).__name__ and not any(module.children())
        if isinstance(module, Linear | Conv1D) or quantized:
            yield name

"""Which model, tokenizer and adapter vLLM is to load for a run; this needs no vLLM."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from swiftplug.config.schema import ModelOptions
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.runs.marker import MARKER, read_marker
from swiftplug.runs.model import ModelRequest, is_adapter_run

_INSTEAD = "merge it into its base model first, or take --engine transformers"
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `max_lora_rank` (`vllm.config.lora.MaxLoRARanks`)."""

_BASE_KEPT = (True, False, "gaussian", "orthogonal", "eva", None)
"""The `init_lora_weights` of PEFT that leave the base weights as they were."""


class VLLMModel(NamedTuple):
    """What vLLM loads.

    Attributes:
        model: A folder or hub id of a whole model.
        options: How to load it; of an adapter's base as the run had it that left the adapter.
        tokenizer: The folder or hub id of its tokenizer.
        adapter: The folder of a LoRA adapter of PEFT, or None.
        max_lora_rank: The room to make for it: its rank, rounded up to what vLLM takes.
    """

    model: str
    options: ModelOptions
    tokenizer: str
    adapter: str | None
    max_lora_rank: int


def find_model(request: ModelRequest, adapter: str | None) -> VLLMModel:
    """Find what vLLM is to load.

    Args:
        request: The model that the run names; its name is empty where only an adapter is named.
        adapter: The adapter that the run names.

    Raises:
        UserError: vLLM cannot load it: it is built by a plugin, or an adapter is not plain LoRA, or there are two.
    """
    if request.options.attn_implementation is not None:
        raise UserError("model_options.attn_implementation: engine 'vllm' has its own; drop it")
    name = _name(request.name, request.plugin) if request.name else ""
    if not name or is_adapter_run(name):
        if name and adapter is not None:
            raise UserError(f"engine 'vllm': {name!r} is an adapter too, and vLLM puts on one only; {_INSTEAD}")
        adapter = adapter if adapter is not None else name
        model, options = _base_of(adapter, request)
        tokenizer = name or model
    else:
        model, options, tokenizer = name, request.options, name
    rank = _rank(adapter) if adapter is not None else _RANKS[0]
    if options.quantization == "8bit":
        raise UserError(f"model_options.quantization: engine 'vllm' quantizes {model!r} to '4bit' only, not to '8bit'")
    return VLLMModel(model, options, tokenizer, adapter, rank)


def _name(name: str, plugin: LoadedPlugin | None) -> str:
    """The folder or hub id that a name means."""
    if plugin is None:
        return name
    if not isinstance(plugin.bound, str):
        raise UserError(
            f"engine 'vllm': {plugin.found} builds its model itself, and vLLM loads a folder or hub id; "
            "take --engine transformers"
        )
    return plugin.bound


def _base_of(adapter: str, request: ModelRequest) -> tuple[str, ModelOptions]:
    """The base model of an adapter that a run left, and how it is loaded."""
    marker = read_marker(adapter)
    if marker is None:
        raise UserError(f"{adapter}: has no {MARKER}, so its base model is unknown; name it with --model")
    choice = PluginChoice.model_validate(marker.base_model)
    where = f"{adapter}/{MARKER}"
    has = request.registry.has("model", choice.name)
    base = _name(choice.name, request.registry.resolve("model", choice, where) if has else None)
    if is_adapter_run(base):
        raise UserError(f"engine 'vllm': the base of {adapter!r} is the adapter {base!r}; {_INSTEAD}")
    # Code that came with a model runs where this run allows it, whatever the folder says.
    trusted = {**marker.model_options, "trust_remote_code": request.options.trust_remote_code}
    return base, ModelOptions.model_validate(trusted)


def _rank(adapter: str) -> int:
    """The `max_lora_rank` that an adapter needs; refuses one that vLLM would load wrongly or not at all."""
    path = Path(adapter).expanduser() / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"engine 'vllm': {adapter!r} is no LoRA adapter of PEFT ({path.name} is missing); {_INSTEAD}")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise UserError(f"engine 'vllm': {adapter!r} is a {config.get('peft_type')} adapter, not LORA; {_INSTEAD}")
    unread = [name for name in ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern") if config.get(name)]
    unread += ["bias"] if config.get("bias", "none") != "none" else []
    unread += ["init_lora_weights"] if config.get("init_lora_weights") not in _BASE_KEPT else []
    if unread:
        raise UserError(
            f"engine 'vllm': {adapter!r} has {unread[0]} {config[unread[0]]!r}, unknown to vLLM; {_INSTEAD}"
        )
    for rank in _RANKS:
        if config["r"] <= rank:
            return rank
    raise UserError(f"engine 'vllm': {adapter!r} has rank {config['r']}, and vLLM takes at most {_RANKS[-1]}")

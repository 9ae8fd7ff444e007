"""Loads the tokenizer of a folder or hub id, without torch if nothing has imported it yet."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from swiftplug.config.schema import ModelOptions
from swiftplug.errors import UserError, broken_link, nearest
from swiftplug.runs.folder import Marker


def load_tokenizer(name: str, options: ModelOptions) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model from a folder or the hub, and give it a padding token.

    Raises:
        UserError: There is no such model, or it has no usable tokenizer.
    """
    check_name(name)
    logging.disable_progress_bar()  # for reading and writing weights; downloads still show theirs
    _put_off_torch()
    from transformers import AutoTokenizer

    try:
        config = _config_for_tokenizer(name, options)
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, **hub_options(options))
    except (OSError, ValueError, KeyError) as error:
        raise load_error(name, error) from error
    return with_padding_token(tokenizer, name)


def _config_for_tokenizer(name: str, options: ModelOptions) -> Any:
    """What `AutoTokenizer` reads of a model's config where the tokenizer names its class; else None: it reads it all.

    To read all of a config imports torch with its compiler, accelerate and more, which takes seconds.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    hub: dict[str, Any] = {"revision": options.revision}
    named = get_tokenizer_config(name, **hub)
    if not named.get("tokenizer_class") or "auto_map" in named:
        return None
    try:
        facts, _ = PreTrainedConfig.get_config_dict(name, **hub)
    except OSError:  # the folder of an adapter
        return None
    return PreTrainedConfig.from_dict(
        {key: facts[key] for key in ("model_type", "model_name") if key in facts}, name_or_path=name
    )


class _TorchWhenUsed(ModuleType):
    """Stands for torch in a module that has imported it for later: torch is imported when something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("torch") is self:
            del sys.modules["torch"]
        return getattr(importlib.import_module("torch"), name)


def _put_off_torch() -> None:
    """Import the one module behind `AutoTokenizer` that imports torch, for models, without waiting for torch."""
    module = "transformers.modeling_rope_utils"
    if "torch" in sys.modules or module in sys.modules:
        return
    stand_in = sys.modules["torch"] = _TorchWhenUsed("torch")
    try:
        importlib.import_module(module)
    finally:
        if sys.modules.get("torch") is stand_in:
            del sys.modules["torch"]


def with_padding_token(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Let a tokenizer without a padding token pad with its end token, and none warn of long texts."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model: the tokenizer of {name!r} has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    # Long rows are cut, left out or drawn from by rules of our own, which say so; Transformers need not warn of them.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def hub_options(options: ModelOptions) -> dict[str, Any]:
    """The options of a model that name its state on the hub, and allow its code."""
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def check_name(name: str) -> None:
    """Report a mistyped folder before the hub is asked for it."""
    path = Path(name).expanduser()
    if link := broken_link(path):
        raise UserError(f"model: {name!r}{link}")
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


def load_error(name: str, error: Exception) -> UserError:
    """The error about a model that cannot be loaded."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    taken = "" if Path(name).expanduser().is_dir() else " from the hub (there is no such folder here)"
    return UserError(f"model: cannot load {name!r}{taken}: {reason}")

"""The contract of a model."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from swiftplug.data.tokens import check_offsets
from swiftplug.errors import ContractError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.testing.inputs import TEXTS, on
from swiftplug.testing.tiny import TinyRun

_TOLERANCE = 1e-4


def check(plugin: LoadedPlugin) -> None:
    """Build a model twice, run it, save it and load it again."""
    with TemporaryDirectory() as folder:
        model, tokenizer = _build(plugin, Path(folder))
        with on("the offsets of its tokenizer"):
            check_offsets(tokenizer)
        if len(tokenizer) > (size := model.get_input_embeddings().num_embeddings):
            raise ContractError(
                f"has {size} embeddings for the {len(tokenizer)} tokens of its tokenizer; call "
                "model.resize_token_embeddings(len(tokenizer))"
            )
        ids = _tokens(tokenizer)
        logits = _logits(model, ids)
        _check_padding(model, tokenizer, ids, logits)
        if not isinstance(plugin.bound, str):
            torch.rand(3)  # the random state is another one now
            again, _ = _build(plugin, Path(folder))
            for name, weight in again.state_dict().items():
                if not torch.equal(weight, model.state_dict()[name]):
                    raise ContractError(
                        f"gives {name} other weights for the same args.seed; seed each of its random numbers by "
                        "args.seed (torch.manual_seed), as a resumed run calls it again"
                    )
        _check_saved(model, tokenizer, ids, logits, Path(folder, "saved"))


def _build(plugin: LoadedPlugin, folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer, as a run gets them."""
    args = TinyRun(plugin, folder).args
    if isinstance(plugin.bound, str):
        return args.load_model(torch.float32), args.load_tokenizer()
    with on("its function"):
        pair = plugin.bound(args)
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ContractError(f"returned a {type(pair).__name__}, expected a pair (model, tokenizer)")
    if not isinstance(pair[0], PreTrainedModel):
        raise ContractError(f"returned a {type(pair[0]).__name__} first, expected a transformers.PreTrainedModel")
    if not getattr(pair[1], "is_fast", False):
        raise ContractError(
            f"returned a {type(pair[1]).__name__} second, expected a fast tokenizer: weights are carried to tokens by "
            "offsets, which only such a one has"
        )
    with on("the model as a run loads it"):
        tokenizer = args.load_tokenizer()
        return args.load_model(torch.float32), tokenizer


def _tokens(tokenizer: Any) -> torch.Tensor:
    with on("a chat as its tokenizer and template write it"):
        messages = [{"role": "user", "content": TEXTS["Chinese"]}, {"role": "assistant", "content": TEXTS["steps"]}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][:64]
    return torch.tensor([ids])


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with on("the forward pass"), torch.no_grad():
        outputs = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask)
        logits = getattr(outputs, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape:
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(outputs).__name__
            raise ContractError(
                f"gives {found}, expected an output with logits of shape ({len(ids)}, {ids.shape[1]}, V)"
            )
        if not torch.isfinite(logits).all():
            raise ContractError("gives logits that are not finite")
    return logits.float()


def _check_padding(model: Any, tokenizer: Any, ids: torch.Tensor, logits: torch.Tensor) -> None:
    padded = torch.cat([ids, torch.full((1, 5), tokenizer.pad_token_id)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 5, dtype=torch.long)], dim=1)
    difference = float((_logits(model, padded, mask)[:, : ids.shape[1]] - logits).abs().max())
    if difference > _TOLERANCE:
        raise ContractError(
            f"depends on padding: logits change by {difference:.2g} with 5 masked tokens on the right; a language "
            "model must not see what follows, nor what attention_mask masks"
        )
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % len(tokenizer)
    difference = float((_logits(model, other)[:, :-1] - logits[:, :-1]).abs().max())
    if difference > _TOLERANCE:
        raise ContractError(
            f"sees the future: another last token changes earlier logits by {difference:.2g}; expected a causal model"
        )


def _check_saved(model: Any, tokenizer: Any, ids: torch.Tensor, logits: torch.Tensor, folder: Path) -> None:
    with on("save_pretrained"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if not list(folder.glob("*.safetensors")):
        raise ContractError("saves no safetensors; save_pretrained must write its weights so")
    with on("from_pretrained of what was saved"):
        loaded = type(model).from_pretrained(folder, dtype=torch.float32)
        again = type(tokenizer).from_pretrained(folder)
    difference = float((_logits(loaded, ids) - logits).abs().max())
    if difference > _TOLERANCE:
        raise ContractError(
            f"is not the same model once it is saved and loaded: logits differ by {difference:.2g}; register every "
            "weight as a parameter or a buffer, and put all that shapes the model into its config"
        )
    for name, text in TEXTS.items():
        if again(text)["input_ids"] != tokenizer(text)["input_ids"]:
            raise ContractError(f"has a tokenizer that, saved and loaded, gives {name} other tokens")

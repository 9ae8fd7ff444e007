"""Proves that what was written computes what the run's model does: plain Transformers, or PEFT, opens it again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.errors import UserError
from swiftplug.formatting import format_count, format_percent
from swiftplug.plugin import Chat, Prompt
from swiftplug.plugin.tools_format import ToolsFormat

TOLERANCE = 1e-5
"""Of two ways to compute the same in float32, relative to the largest logit."""

_TEXTS = (
    "The library opens at nine. If you return a book late, you pay ten cents for each day.",
    "图书馆九点开门。逾期还书，每天罚款一角；请问：五天要付多少钱？",
    "def fee(days: int) -> float:\n    return 0.1 * days  # 5 days: 0.5\n\n👩‍🔬 naïve café, Ünïcödé, 1 + 1 = 2.",
)
_LONG, _LENGTH = 128, 64  # tokens of the built-in text, and of a row, so that logits of many words fit into memory
_NEW_TOKENS = 16


def proof_texts(
    tokenizer: PreTrainedTokenizerBase, tools: ToolsFormat, rows: Sequence[Conversation]
) -> list[torch.Tensor]:
    """The texts to compare on, as `(N, T)` token ids of `N` texts of one length each.

    They are a long built-in conversation, and rows, as the chat template writes them.
    """
    renderer = ChatRenderer(tokenizer, tools)
    own = [{"role": role, "content": text} for each in _TEXTS for role, text in (("user", "?"), ("assistant", each))]
    texts = []
    for row in [Conversation(own, RowOrigin("", 0)), *rows]:
        try:
            texts.append(renderer.render(row).text if row.text is None else row.text)
        except RowError:
            # A chat template for other turns alone; training has left such a row out as well.
            texts.append("" if texts else "\n".join(_TEXTS))
    encode: Any = tokenizer
    long, *others = [encode(text, add_special_tokens=False)["input_ids"] for text in texts]
    by_length: dict[int, list[list[int]]] = {}
    for ids in [long[:_LONG], *(each[:_LENGTH] for each in others if each)]:
        by_length.setdefault(len(ids), []).append(ids)
    return [torch.tensor(group) for group in by_length.values()]


class Difference(NamedTuple):
    """How far some outputs are from others.

    Attributes:
        largest: The largest difference, relative to `scale`; infinite if an output is not finite.
        scale: The largest absolute value of the others.
        agreement: The share of rows whose largest output is the same one.
    """

    largest: float
    scale: float
    agreement: float

    @classmethod
    def between(cls, outputs: torch.Tensor, reference: torch.Tensor) -> "Difference":
        """Compare `(N, V)` outputs with those of a reference."""
        scale = reference.abs().amax().clamp(min=1e-30)
        largest = ((outputs - reference).abs().amax() / scale).nan_to_num(nan=torch.inf)
        agreement = (outputs.argmax(-1) == reference.argmax(-1)).double().mean()
        return cls(float(largest), float(scale), float(agreement))


@torch.inference_mode()
def outputs_of(model: Any, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a model gives for texts: the logits of each token, or those of each text, `(N, V)`."""
    logits = [model(input_ids=ids.to(model.device)).logits.cpu() for ids in texts]
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in logits])


def in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """The same model with weights in float32, without rounding any; quantized ones stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and type(parameter) is torch.nn.Parameter:
            parameter.data = parameter.data.to(torch.float32)
    return model


def greeting(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> list[int]:
    """A chat prompt and what an answer may begin with: a model that was trained to end its turns soon does so."""
    try:
        ids, _ = chat.encode(Prompt("greeting", [{"role": "user", "content": "Hello! 你好！"}]))
    except UserError:  # a chat template for other turns alone
        ids = []
    encode: Any = tokenizer
    return [*ids, *encode("Hello! How can I help you today?", add_special_tokens=False)["input_ids"]]


@torch.inference_mode()
def greedy_answer(model: Any, ids: list[int], end_ids: list[int] | None = None) -> list[int]:
    """The likeliest tokens behind a prompt, to their end, but only so many.

    Args:
        model: The model.
        ids: The prompt.
        end_ids: The tokens that end the answer; None leaves that to the model's generation config.
    """
    prompt = torch.tensor([ids], device=model.device)
    ends = {} if end_ids is None else {"eos_token_id": end_ids}
    written = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=_NEW_TOKENS,
        **ends,
    )
    answer: list[int] = written[0, len(ids) :].tolist()
    return answer


def open_plain(folder: Path, auto: Any, base: dict[str, Any] | None, *, trust_remote_code: bool) -> Any:
    """Open what was exported as any other program does, and get its weights in float32.

    Args:
        folder: The exported folder.
        auto: The `AutoModelFor…` of Transformers.
        base: The arguments with which `auto` opens the base model of an adapter; None for a whole model.

    Raises:
        UserError: The folder lacks a weight of the model, or has one that the model does not.
    """
    if base is not None:
        return in_float32(PeftModel.from_pretrained(auto.from_pretrained(**base), str(folder))).eval()
    model, info = auto.from_pretrained(
        folder, dtype="auto", output_loading_info=True, trust_remote_code=trust_remote_code
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(problem, ()))):
            raise UserError(
                f"plain Transformers does not open what was written: {problem.replace('_keys', ' weights')}: "
                f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            )
    return in_float32(model).eval()


def describe_proof(
    dtype: torch.dtype,
    found: Difference,
    rounding: Difference | None,
    precision: str,
    texts: Sequence[torch.Tensor],
    where: str,
) -> str:
    """The line that says what was compared and what came out.

    Args:
        dtype: The type of the exported weights.
        found: How far what was written is from the run.
        rounding: How far the run's own weights are from themselves, rounded to that type; None if none was rounded.
        precision: What the comparison was computed in.
        texts: What was compared on.
        where: Where some of the texts are from.
    """
    tokens = format_count(sum(each.numel() for each in texts), "token")
    on = f"{format_count(sum(map(len, texts)), 'text')} ({where}), {tokens}"
    largest = f"largest difference {found.largest:.1e} of {found.scale:.3g}"
    if rounding is None:
        return f"logits: those of the run; {largest} (tolerance {TOLERANCE:g}, in {precision}), on {on}"
    name = str(dtype).removeprefix("torch.")
    return (
        f"logits: those of the run in {name}; {largest} (tolerance {rounding.largest + TOLERANCE:.1e}: what rounding "
        f"the run's weights to {name} changes, plus {TOLERANCE:g}); the likeliest is the same for "
        f"{format_percent(found.agreement)}, on {on}"
    )

"""Sets the chat template of a tokenizer, and gives it reasoning under the key that it reads."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.errors import UserError, broken_link

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys under which messages have what the model thought; datasets and chat templates differ in theirs."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def set_chat_template(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> list[str]:
    """Set the chat template: from a file if one is given, else the tokenizer's own, else ChatML.

    Args:
        tokenizer: The tokenizer; its `chat_template` is set.
        template: A Jinja file, or None.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        UserError: If the file cannot be read or is not a Jinja template.
    """
    if template is not None:
        tokenizer.chat_template = _read_template(Path(template))
        return []
    if tokenizer.chat_template is not None:
        return []
    tokenizer.chat_template = CHATML
    note = "the tokenizer has no chat template: ChatML is used (to use another: --template FILE.jinja)"
    unknown = [marker for marker in ("<|im_start|>", "<|im_end|>") if marker not in tokenizer.get_vocab()]
    if unknown:
        note += f"; {' and '.join(unknown)} are not in its vocabulary and are written as plain text"
    return [note]


def with_reasoning_key(
    messages: Sequence[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, Any]]:
    """Rename `reasoning_content` to the key of `REASONING_KEYS` that the tokenizer's chat template reads.

    Args:
        messages: Messages for the chat template.
        tokenizer: The tokenizer. If its template reads none of the keys, nothing is renamed.

    Returns:
        The messages.
    """
    first, key = REASONING_KEYS[0], _reasoning_key(str(tokenizer.chat_template))
    if key == first:
        return list(messages)
    return [{key if name == first else name: value for name, value in message.items()} for message in messages]


@cache
def _reasoning_key(template: str) -> str:
    read = (key for key in REASONING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template))
    return next(read, REASONING_KEYS[0])


def _read_template(path: Path) -> str:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {path}: {error}{broken_link(path)}") from None
    try:
        render_jinja_template(conversations=[], chat_template=text)  # compiles it
    except TemplateSyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from None
    return text

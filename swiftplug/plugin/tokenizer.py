"""Sets the chat template of a tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from swiftplug.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def _read_template(path: Path) -> str:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {path}: {error}") from None
    try:
        render_jinja_template(conversations=[], chat_template=text)  # compiles it
    except TemplateSyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from None
    return text

"""Prompts and answers of generation, as the text and tokens that training makes of them."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.tools import Turns
from swiftplug.data.read.conversation import RowError
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Prompt


class GenerationChat:
    """Implements `swiftplug.plugin.Chat` with a tokenizer and its chat template.

    Args:
        tokenizer: A tokenizer with a chat template.
        end_ids: Further tokens that end an answer, such as those that a model's generation config names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer)
        self._end_of_turn = self.stop_text = self._renderer.end_of_turn()
        self._before_end = ""
        ids = self._encode(self.stop_text)
        ends = []
        if ids and (len(ids) == 1 or ids[-1] in tokenizer.added_tokens_decoder):
            ends = ids[-1:]
            self._before_end = self.stop_text.removesuffix(self._decode(ends))
            self.stop_text = ""
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end_ids = list(dict.fromkeys([*ends, *eos, *end_ids]))

    def encode(self, prompt: Prompt) -> tuple[list[int], str]:
        roles = [message["role"] for message in prompt.messages]
        try:
            text, opened = self._renderer.prompt(
                Turns(prompt.messages, prompt.tools, [], roles, dict(prompt.chat_template_kwargs))
            )
        except RowError as error:
            raise UserError(f"the chat template refuses the prompt: {error.detail}") from error
        return self._encode(text), opened

    def answer(self, ids: Sequence[int], opened: str = "") -> str:
        end = next((place for place, token in enumerate(ids) if token in self.end_ids), len(ids))
        text = self._decode(ids[:end])
        text = text.partition(self.stop_text)[0] if self.stop_text else text.removesuffix(self._before_end)
        return opened + text

    def reply(self, answered: Prompt, replied: Prompt) -> list[int]:
        turns = Turns(replied.messages, replied.tools, [], [], dict(replied.chat_template_kwargs))
        try:
            text = self._renderer.reply(turns, len(answered.messages), self._end_of_turn)
        except RowError as error:
            raise UserError(f"{error}: {error.detail}" if error.detail not in str(error) else str(error)) from error
        # Encoded together with the end of turn: the tokens of a text may depend on whether it is the first.
        ids, end = self._encode(self._end_of_turn + text), self._encode(self._end_of_turn)
        return ids[len(end) :] if ids[: len(end)] == end else self._encode(text)

    def has_stopped(self, ids: Sequence[int]) -> bool:
        return bool(self.stop_text) and self.stop_text in self._decode(ids[-len(self.stop_text) - 1 :])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        # Special tokens and spaces are part of the answer: encoded again, it must give the same tokens.
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

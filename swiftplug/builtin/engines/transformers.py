"""Sampling from a local model with Transformers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from pydantic import PositiveInt

from swiftplug.builtin.engines.decoding import Decoder, Drawn, GenerationRequest, uniform_numbers
from swiftplug.builtin.engines.fast_parts import pack_linears
from swiftplug.builtin.hardware import pick_device, pick_dtype
from swiftplug.plugin import Answered, Chat, Completion, Engine, Prompt, Sampling, UserError

_BROKEN = "the model's output is not a number; try another dtype"


class TransformersEngine(Engine):
    """Generates many candidates at once with a model on this machine, on its GPU if it has one.

    A prompt is processed once for all of its candidates. Tokens are drawn from the model's distribution, changed only
    by `temperature`, `top_k` and `top_p`: other settings in `generation_config.json` do not apply. A candidate ends at
    the chat template's end of turn, at the tokenizer's end token, or at one that the model's generation config names.

    Args:
        batch_size: Maximum number of candidates generated at once; lower it if memory runs out.
    """

    together = True
    uses_chat = True

    def __init__(self, batch_size: PositiveInt = 64) -> None:
        self.batch_size = batch_size
        self._decoder: Decoder | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """As many prompts as have all their candidates in one batch."""
        return max(1, self.batch_size // _num_different(sampling))

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: The model cannot be loaded.
        """
        self._sampling = sampling
        device = pick_device()
        dtype = pick_dtype(args.dtype, device)
        model: Any = args.load_model(dtype)
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if not getattr(inner, "is_quantized", False):
            model.to(device)  # quantized weights stay where they are
        pack_linears(model, self.batch_size)
        self._chat: Chat = args.load_chat(inner)
        self._decoder = Decoder(model, self._chat.end_ids, self._chat.has_stopped if self._chat.stop_text else None)
        context = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
        self._context = None if context is None else context - self._decoder.num_virtual_tokens

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Generate the candidates of prompts.

        Raises:
            UserError: A batch does not fit into the GPU's memory.
        """
        assert self._decoder is not None, "not opened"
        requests: dict[str, GenerationRequest] = {}
        opened: dict[str, str] = {}
        for prompt in prompts:
            try:
                ids, opened[prompt.id] = self._chat.encode(prompt)
                requests[prompt.id] = self._request(prompt.id, ids)
            except UserError as error:
                yield Answered(prompt.id, failure=str(error))
        most = 1 if self._decoder.num_virtual_tokens else self.prompts_at_once(self._sampling)
        answerable = list(requests)
        for start in range(0, len(answerable), most):
            batch = answerable[start : start + most]
            drawn = self._decode([requests[prompt_id] for prompt_id in batch])
            for prompt_id, candidates in zip(batch, drawn, strict=True):
                yield self._answer(prompt_id, candidates, opened[prompt_id])

    def stream(self, prompt: Prompt) -> Iterator[Completion]:
        """Generate the first candidate of a prompt token by token; see `Engine.stream`.

        A conversation's earlier turns are not read again, as far as the chat template writes them as before.
        """
        assert self._decoder is not None, "not opened"
        ids, opened = self._chat.encode(prompt)
        for drawn in self._decoder.stream(self._request(prompt.id, ids), self._sampling):
            if drawn.finish_reason == "broken":
                raise UserError(_BROKEN)
            text = self._chat.answer(drawn.ids, opened)
            yield Completion(text if drawn.finish_reason else self._settled(text), drawn.finish_reason)

    def _settled(self, text: str) -> str:
        """The part of a growing answer that will stay: whole characters, and nothing that may belong to its end."""
        text = text.rstrip("\ufffd \t\r\n")
        stop = self._chat.stop_text
        begun = (length for length in range(len(stop), 0, -1) if text.endswith(stop[:length]))
        return text[: len(text) - next(begun, 0)]

    def close(self) -> None:
        """Release the model."""
        self._decoder = None

    def _request(self, prompt_id: str, ids: list[int]) -> GenerationRequest:
        """What to generate for a prompt.

        Raises:
            UserError: The prompt is too long.
        """
        sampling = self._sampling
        longest = sampling.max_new_tokens
        if self._context is not None:
            if len(ids) > self._context:
                raise UserError(f"the prompt has {len(ids):,} tokens, the model reads at most {self._context:,}")
            longest = min(longest, self._context - len(ids) + 1)  # the last token is not fed back
        seeds = [sampling.seed_of(prompt_id, index) for index in range(_num_different(sampling))]
        return GenerationRequest(ids, uniform_numbers(seeds, sampling.max_new_tokens), longest)

    def _decode(self, requests: list[GenerationRequest]) -> list[list[Drawn]]:
        """Generate a batch; a prompt with more candidates than fit into one is split."""
        assert self._decoder is not None
        try:
            if len(requests) > 1:
                return self._decoder.decode(requests, self._sampling)
            parts = [requests[0]._replace(numbers=numbers) for numbers in requests[0].numbers.split(self.batch_size)]
            return [[drawn for part in parts for drawn in self._decoder.decode([part], self._sampling)[0]]]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"engine.batch_size: {self.batch_size} candidates at once do not fit into the GPU's memory; lower it"
            ) from error

    def _answer(self, prompt_id: str, drawn: list[Drawn], opened: str) -> Answered:
        if any(candidate.finish_reason == "broken" for candidate in drawn):
            return Answered(prompt_id, failure=_BROKEN)
        completions = [
            Completion(self._chat.answer(candidate.ids, opened), candidate.finish_reason) for candidate in drawn
        ]
        return Answered(prompt_id, completions * (self._sampling.num_return_sequences // len(completions)))


def _num_different(sampling: Sampling) -> int:
    """How many different candidates a prompt has: greedy ones are all the same."""
    return 1 if sampling.temperature == 0 else sampling.num_return_sequences

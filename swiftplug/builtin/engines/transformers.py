"""Sampling from a local model with Transformers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from pydantic import PositiveInt

from swiftplug.builtin.engines.decoding import Decoder, Drawn, GenerationRequest
from swiftplug.builtin.engines.fast_parts import pack_linears
from swiftplug.builtin.hardware import pick_device, pick_dtype
from swiftplug.builtin.tuners.lora_layer import joined
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
    follows = True

    def __init__(self, batch_size: PositiveInt = 64) -> None:
        self.batch_size = batch_size
        self._model: Any = None
        self._decoder: Decoder | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """As many prompts as have all their candidates in one batch."""
        return max(1, self.batch_size // _num_different(sampling))

    def check_run(self, args: Any) -> None:
        """Refuse to follow a model that is not whole on any device; see `Engine.check_run`."""
        super().check_run(args)
        if args.training_args and (args.training_args.fsdp or args.training_args.deepspeed):
            raise UserError("engine 'transformers' cannot draw from a model that FSDP or DeepSpeed shards; use DDP")

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: The model cannot be loaded.
        """
        self._sampling = sampling
        device = pick_device()
        dtype = pick_dtype(args.dtype, device)
        model: Any = args.load_model(dtype)
        inner = _inner(model)
        if not getattr(inner, "is_quantized", False):
            model.to(device)  # quantized weights stay where they are
        pack_linears(model, self.batch_size)
        self._chat: Chat = args.load_chat(inner)
        self._decoder = self._decoder_of(model)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Generate the candidates of prompts.

        Raises:
            UserError: A batch does not fit into the GPU's memory.
        """
        assert self._decoder is not None, "not opened"
        return self._answers(self._decoder, prompts, self._sampling)

    def follow(self, args: Any, model: Any) -> None:
        """Get ready to draw from a model in training; see `Engine.follow`."""
        self._model, self._chat = model, args.load_chat(_inner(model))
        training = args.training_args
        self._autocast = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Answered]:
        """Draw candidates from the model in training; see `Engine.draw`.

        The model decodes itself, with its adapter. In float32 on a CPU, packed copies of its linear layers, each with
        its LoRA added, stand in for them until the drawing ends: packing takes about a second per 100 million
        parameters, and each step is faster. In half precision a linear layer and its LoRA are one matrix until then.

        Raises:
            UserError: A batch does not fit into the GPU's memory.
        """
        with self._packed():
            yield from self._answers(self._decoder_of(self._model), prompts, sampling, self._evaluated)

    @contextmanager
    def _packed(self) -> Iterator[None]:
        """The model in training with layers that decode faster; then it is again as it was."""
        if self._autocast is not None:
            with joined(self._model, self._autocast):
                yield
            return
        replaced = pack_linears(self._model, self.batch_size)
        try:
            yield
        finally:
            for parent, name, layer in replaced:
                setattr(parent, name, layer)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """The model in training fit to be drawn from; then each module has its mode again."""
        model, dtype = self._model, self._autocast
        modes = {module: module.training for module in model.modules()}
        try:
            model.eval()
            with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _decoder_of(self, model: Any) -> Decoder:
        decoder = Decoder(model, self._chat.end_ids, self._chat.has_stopped if self._chat.stop_text else None)
        context = getattr(_inner(model).config.get_text_config(), "max_position_embeddings", None)
        self._context = None if context is None else context - decoder.num_virtual_tokens
        return decoder

    def _answers(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        ready: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[Answered]:
        """The candidates of prompts; `ready` gives the context in which the model can be drawn from."""
        requests: dict[str, GenerationRequest] = {}
        opened: dict[str, str] = {}
        for prompt in prompts:
            try:
                requests[prompt.id], opened[prompt.id] = self._request(prompt, sampling)
            except UserError as error:
                yield Answered(prompt.id, failure=str(error))
        most = 1 if decoder.num_virtual_tokens else self.prompts_at_once(sampling)
        answerable = list(requests)
        for start in range(0, len(answerable), most):
            batch = answerable[start : start + most]
            with ready():
                drawn = self._decode(decoder, [requests[prompt_id] for prompt_id in batch], sampling)
            for prompt_id, candidates in zip(batch, drawn, strict=True):
                copies = sampling.num_return_sequences // len(candidates)
                yield self._answer(prompt_id, candidates * copies, opened[prompt_id])

    def stream(self, prompt: Prompt) -> Iterator[Completion]:
        """Generate the first candidate of a prompt token by token; see `Engine.stream`.

        A conversation's earlier turns are not read again, as far as the chat template writes them as before.
        """
        assert self._decoder is not None, "not opened"
        request, opened = self._request(prompt, self._sampling)
        for drawn in self._decoder.stream(request, self._sampling):
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
        self._decoder = self._model = None

    def _request(self, prompt: Prompt, sampling: Sampling) -> tuple[GenerationRequest, str]:
        """What to generate for a prompt, and the end of the prompt that belongs to the answer.

        Raises:
            UserError: The prompt is too long, or the chat template refuses it.
        """
        ids, opened = self._chat.encode(prompt)
        ids = ids if prompt.ids is None else [*prompt.ids]
        longest = sampling.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens
        if self._context is not None:
            if len(ids) > self._context:
                raise UserError(f"the prompt has {len(ids):,} tokens, the model reads at most {self._context:,}")
            longest = min(longest, self._context - len(ids) + 1)  # the last token is not fed back
        seeds = [sampling.seed_of(prompt.id, index) for index in range(_num_different(sampling))]
        return GenerationRequest(ids, seeds, longest), opened

    def _decode(self, decoder: Decoder, requests: list[GenerationRequest], sampling: Sampling) -> list[list[Drawn]]:
        """Generate a batch; a prompt with more candidates than fit into one is split."""
        try:
            if len(requests) > 1:
                return decoder.decode(requests, sampling)
            [request], size = requests, self.batch_size
            parts = [request.seeds[start : start + size] for start in range(0, len(request.seeds), size)]
            return [[drawn for part in parts for drawn in decoder.decode([request._replace(seeds=part)], sampling)[0]]]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"engine.batch_size: {self.batch_size} candidates at once do not fit into the GPU's memory; lower it"
            ) from error

    def _answer(self, prompt_id: str, drawn: list[Drawn], opened: str) -> Answered:
        if any(candidate.finish_reason == "broken" for candidate in drawn):
            return Answered(prompt_id, failure=_BROKEN)
        follows = self._model is not None
        return Answered(
            prompt_id,
            [Completion(self._chat.answer(ids, opened), reason, ids if follows else ()) for ids, reason in drawn],
        )


def _inner(model: Any) -> Any:
    """The model under PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _num_different(sampling: Sampling) -> int:
    """How many different candidates a prompt has: greedy ones are all the same."""
    return 1 if sampling.temperature == 0 else sampling.num_return_sequences

"""Sampling from a local model with vLLM's offline engine."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from swiftplug.builtin.engines.vllm_model import find_model
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Completion, Engine, Prompt, Sampling
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.runs.model import ModelRequest, open_base_model, open_model

_CANDIDATES_AT_ONCE = 4096
"""Several times what vLLM decodes side by side, so that the slow end of a batch weighs little."""


class VLLMEngine(Engine):
    """Decodes with vLLM, in this process: continuous batching, and the prefill of a prompt shared by its candidates.

    A LoRA adapter that a run or PEFT left is put on its base model; other adapters have to be merged first.

    Args:
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: The share of each GPU's memory that vLLM takes.
        max_model_len: The most tokens of a prompt and its answer together; None for as many as the model was made for.
        engine_args: Anything else that `vllm.LLM` takes.
    """

    together = True

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9,
        max_model_len: PositiveInt | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self._given = {
            "tensor_parallel_size": tensor_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            **(engine_args or {}),
        }

    def prompts_at_once(self, sampling: Sampling) -> int:
        """As many prompts as keep vLLM busy; it makes its own batches of them."""
        return max(256, _CANDIDATES_AT_ONCE // sampling.num_return_sequences)

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: There is no such model, or vLLM cannot load it.
        """
        request: ModelRequest = args.model_request(torch.float32, torch.float32)
        found = find_model(request, args.adapter)
        source = open_model(request) if args.model is not None else open_base_model(args.adapter, request)
        self._tokenizer = source.tokenizer
        set_chat_template(self._tokenizer, args.data.template)
        settings = {
            "model": found.model,
            "revision": found.options.revision,
            "tokenizer": found.tokenizer,
            "tokenizer_revision": found.options.revision if found.tokenizer == found.model else None,
            "dtype": args.dtype,
            "seed": args.seed,
            "trust_remote_code": found.options.trust_remote_code,
            # vLLM quantizes to four bits as it loads.
            "quantization": "bitsandbytes" if found.options.quantization else None,
            **self._given,
        }
        self._lora = None
        if found.adapter is not None:
            self._lora = LoRARequest("adapter", 1, found.adapter)
            settings = {"enable_lora": True, "max_lora_rank": found.max_lora_rank, **settings}
        try:
            self._llm = LLM(**settings)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"engine 'vllm': cannot load {found.model!r}: {' '.join(str(error).split())}") from error
        self._longest = self._llm.llm_engine.model_config.max_model_len
        self._sampling = sampling

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts; all at once, when the last is done."""
        answerable, requests, params = [], [], []
        for prompt in prompts:
            try:
                ids = self._ids(prompt)
            except _RefusedError as refusal:
                yield Answered(prompt.id, failure=str(refusal))
                continue
            answerable.append(prompt)
            of_each = self._params(prompt)
            params += of_each
            requests += [{"prompt_token_ids": ids}] * len(of_each)
        if not answerable:
            return
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora)
        drawn = [Completion(it.outputs[0].text, it.outputs[0].finish_reason or "unknown") for it in outputs]
        each = len(drawn) // len(answerable)
        for number, prompt in enumerate(answerable):
            own = drawn[number * each : (number + 1) * each]
            yield Answered(prompt.id, own * (self._sampling.num_return_sequences // each))

    def close(self) -> None:
        """Let the model go; vLLM ends its processes with it."""
        self._llm = None

    def _ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, as the other local engine has them."""
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                prompt.messages, tools=prompt.tools, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        except Exception as error:  # a template is a program, and raises what it likes
            raise _RefusedError(f"the chat template refuses the prompt: {' '.join(str(error).split())}") from error
        if len(ids) >= self._longest:  # vLLM would refuse all prompts for one
            raise _RefusedError(f"the prompt has {len(ids):,} tokens, too many for max_model_len {self._longest:,}")
        return ids

    def _params(self, prompt: Prompt) -> list[SamplingParams]:
        """How to draw each candidate of a prompt; greedy ones are all the same."""
        sampling = self._sampling
        different = sampling.num_return_sequences if sampling.temperature > 0 else 1
        return [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed_of(prompt.id, index),
            )
            for index in range(different)
        ]


class _RefusedError(Exception):
    """A prompt that cannot be answered; the message says why."""

"""Candidates from vLLM's offline engine, in this process."""

from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from swiftplug.plugin import Answered, Chat, Completion, Engine, Prompt, Sampling, UserError

_CANDIDATES_AT_ONCE = 4096
"""Several times what vLLM generates in parallel, so that the wait for the last ones matters little."""


class VLLMEngine(Engine):
    """Generates with vLLM: continuous batching, and one prefill per prompt for all its candidates.

    An adapter is merged into its base model first.

    Args:
        tensor_parallel_size: Number of GPUs that share the model.
        gpu_memory_utilization: The share of each GPU's memory that vLLM takes.
        max_model_len: Maximum number of tokens of a prompt and its answer together; None for the model's own maximum.
        engine_args: Further arguments of `vllm.LLM`.
    """

    together = True
    uses_chat = True

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
        self._folder: TemporaryDirectory[str] | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """Enough prompts to keep vLLM busy; it forms its own batches."""
        return max(256, _CANDIDATES_AT_ONCE // sampling.num_return_sequences)

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: An option is not supported by vLLM, or the model cannot be loaded.
        """
        options = args.model_options
        if options.attn_implementation is not None:
            raise UserError("model_options.attn_implementation: engine 'vllm' has its own; drop it")
        if options.quantization == "8bit":
            raise UserError("model_options.quantization: engine 'vllm' quantizes to '4bit' only, not to '8bit'")
        self._sampling = sampling
        self._chat: Chat = args.load_chat()
        self._folder = TemporaryDirectory(prefix="swiftplug-vllm-")
        model = args.export_model(self._folder.name)
        settings = {
            "model": model,
            # An exported folder has no revisions.
            "revision": options.revision if model != self._folder.name else None,
            "dtype": args.dtype,
            "seed": args.seed,
            "trust_remote_code": options.trust_remote_code,
            "quantization": "bitsandbytes" if options.quantization else None,  # to four bits, as vLLM loads the weights
            **self._given,
        }
        try:
            from vllm import LLM, SamplingParams  # slow to import: not while plugins are checked

            self._llm = LLM(**settings)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"engine 'vllm': cannot load {model!r}: {' '.join(str(error).split())}") from error
        self._sampling_params = SamplingParams
        self._longest = self._llm.llm_engine.model_config.max_model_len

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Generate the candidates of prompts; results come when all are done."""
        sampling = self._sampling
        # Greedy candidates are all the same.
        num_different = sampling.num_return_sequences if sampling.temperature > 0 else 1
        answerable, requests, params = [], [], []
        stop = [self._chat.stop_text] if self._chat.stop_text else None
        for prompt in prompts:
            try:
                ids, opened = self._chat.encode(prompt)
            except UserError as error:
                yield Answered(prompt.id, failure=str(error))
                continue
            if len(ids) >= self._longest:  # vLLM would reject all prompts because of one
                reason = f"the prompt has {len(ids):,} tokens, too many for max_model_len {self._longest:,}"
                yield Answered(prompt.id, failure=reason)
                continue
            answerable.append((prompt.id, opened))
            for index in range(num_different):
                requests.append({"prompt_token_ids": ids})
                params.append(
                    self._sampling_params(
                        max_tokens=sampling.max_new_tokens,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        seed=sampling.seed_of(prompt.id, index),
                        stop_token_ids=self._chat.end_ids,
                        stop=stop,
                    )
                )
        if not answerable:
            return
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        for number, (prompt_id, opened) in enumerate(answerable):
            own = outputs[number * num_different : (number + 1) * num_different]
            completions = [self._completion(output.outputs[0], opened) for output in own]
            yield Answered(prompt_id, completions * (sampling.num_return_sequences // num_different))

    def _completion(self, output: Any, opened: str) -> Completion:
        """The candidate of one output, from its tokens: vLLM's own text lacks special tokens inside the answer."""
        ids = list(output.token_ids)
        if output.finish_reason == "stop" and not isinstance(output.stop_reason, str):
            ids = ids[:-1]  # the token that ended it, which may be one that only vLLM knows of
        return Completion(self._chat.answer(ids, opened), output.finish_reason or "unknown")

    def close(self) -> None:
        """Release the model, with which vLLM ends its processes, and remove its folder."""
        self._llm = None
        if self._folder is not None:
            self._folder.cleanup()

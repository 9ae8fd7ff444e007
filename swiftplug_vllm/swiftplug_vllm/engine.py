"""Candidates from vLLM's offline engine, in this process."""

from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from swiftplug.plugin import Answered, Completion, Engine, Prompt, Sampling, UserError

_CANDIDATES_AT_ONCE = 4096
"""Several times what vLLM decodes side by side, so that the slow end of a batch weighs little."""


class VLLMEngine(Engine):
    """Decodes with vLLM: continuous batching, and the prefill of a prompt shared by its candidates.

    The run's model is loaded as plain Transformers would: an adapter is merged into its base model first.

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
        self._folder: TemporaryDirectory[str] | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """As many prompts as keep vLLM busy; it makes its own batches of them."""
        return max(256, _CANDIDATES_AT_ONCE // sampling.num_return_sequences)

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: There is no such model, an option does not fit vLLM, or vLLM cannot load the model.
        """
        options = args.model_options
        if options.attn_implementation is not None:
            raise UserError("model_options.attn_implementation: engine 'vllm' has its own; drop it")
        if options.quantization == "8bit":
            raise UserError("model_options.quantization: engine 'vllm' quantizes to '4bit' only, not to '8bit'")
        self._sampling = sampling
        self._tokenizer = args.load_tokenizer()
        self._folder = TemporaryDirectory(prefix="swiftplug-vllm-")
        model = args.export_model(self._folder.name)
        settings = {
            "model": model,
            # A folder of ours has no revisions.
            "revision": options.revision if model != self._folder.name else None,
            "dtype": args.dtype,
            "seed": args.seed,
            "trust_remote_code": options.trust_remote_code,
            "quantization": "bitsandbytes" if options.quantization else None,  # to four bits, as vLLM loads the weights
            **self._given,
        }
        try:
            from vllm import LLM, SamplingParams  # takes long; choosing and checking the plugin should not

            self._llm = LLM(**settings)
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"engine 'vllm': cannot load {model!r}: {' '.join(str(error).split())}") from error
        self._sampling_params = SamplingParams
        self._longest = self._llm.llm_engine.model_config.max_model_len

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts; all at once, when the last is done."""
        sampling = self._sampling
        # Greedy candidates are all the same.
        num_different = sampling.num_return_sequences if sampling.temperature > 0 else 1
        answerable, requests, params = [], [], []
        for prompt in prompts:
            try:
                ids = self._tokenizer.apply_chat_template(
                    prompt.messages, tools=prompt.tools, add_generation_prompt=True, return_dict=True
                )["input_ids"]
            except Exception as error:  # a template is a program, and raises what it likes
                reason = " ".join(str(error).split())
                yield Answered(prompt.id, failure=f"the chat template refuses the prompt: {reason}")
                continue
            if len(ids) >= self._longest:  # vLLM would refuse all prompts for one
                reason = f"the prompt has {len(ids):,} tokens, too many for max_model_len {self._longest:,}"
                yield Answered(prompt.id, failure=reason)
                continue
            answerable.append(prompt)
            for index in range(num_different):
                requests.append({"prompt_token_ids": ids})
                params.append(
                    self._sampling_params(
                        max_tokens=sampling.max_new_tokens,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        seed=sampling.seed_of(prompt.id, index),
                    )
                )
        if not answerable:
            return
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        drawn = [Completion(it.outputs[0].text, it.outputs[0].finish_reason or "unknown") for it in outputs]
        for number, prompt in enumerate(answerable):
            own = drawn[number * num_different : (number + 1) * num_different]
            yield Answered(prompt.id, own * (sampling.num_return_sequences // num_different))

    def close(self) -> None:
        """Let the model go, and its folder; vLLM ends its processes with the model."""
        self._llm = None
        if self._folder is not None:
            self._folder.cleanup()

"""Candidates from vLLM's offline engine, in this process."""

import os
import socket
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, PositiveInt

from swiftplug.plugin import Answered, Chat, Completion, Engine, Prompt, Sampling, UserError

_CANDIDATES_AT_ONCE = 4096
"""Several times what vLLM generates in parallel, so that the wait for the last ones matters little."""


class VLLMEngine(Engine):
    """Generates with vLLM: continuous batching, and one prefill per prompt for all its candidates.

    An adapter is merged into its base model first. In an online task each process has a vLLM of its own on its GPU: it
    takes the model's weights before each drawing, with what a LoRA adds to them, and sleeps while the model trains.

    Args:
        tensor_parallel_size: Number of GPUs that share the model; 1 in an online task.
        gpu_memory_utilization: The share of each GPU's memory that vLLM takes; None for 0.9, or 0.3 in an online task.
        max_model_len: Maximum number of tokens of a prompt and its answer together; None for the model's own maximum.
        engine_args: Further arguments of `vllm.LLM`.
    """

    together = True
    uses_chat = True
    follows = True

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None,
        max_model_len: PositiveInt | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        self._given = {
            "tensor_parallel_size": tensor_parallel_size,
            "max_model_len": max_model_len,
            **(engine_args or {}),
        }
        self._memory = gpu_memory_utilization
        self._folder: TemporaryDirectory[str] | None = None
        self._model: Any = None
        self._sleeps = False

    def prompts_at_once(self, sampling: Sampling) -> int:
        """Enough prompts to keep vLLM busy; it forms its own batches."""
        return max(256, _CANDIDATES_AT_ONCE // sampling.num_return_sequences)

    def check_run(self, args: Any) -> None:
        """Refuse an online task whose model vLLM cannot take the weights of; see `Engine.check_run`."""
        super().check_run(args)
        training = args.training_args
        if training is None:
            return
        if training.fsdp or training.deepspeed:
            raise UserError("engine 'vllm' cannot take weights that FSDP or DeepSpeed shards; use DDP")
        if args.model_options.quantization:
            raise UserError(
                "model_options.quantization: engine 'vllm' cannot follow it in training; use 'transformers'"
            )
        if self._given["tensor_parallel_size"] != 1:
            raise UserError("engine.tensor_parallel_size: 1 in an online task, where each process draws on its own GPU")

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model.

        Raises:
            UserError: An option is not supported by vLLM, or the model cannot be loaded.
        """
        self._sampling = sampling
        self._chat: Chat = args.load_chat()
        self._load(args, args.dtype, self._memory or 0.9)

    def _load(self, args: Any, dtype: str, memory: float, **required: Any) -> None:
        options = args.model_options
        if options.attn_implementation is not None:
            raise UserError("model_options.attn_implementation: engine 'vllm' has its own; drop it")
        if options.quantization == "8bit":
            raise UserError("model_options.quantization: engine 'vllm' quantizes to '4bit' only, not to '8bit'")
        self._folder = TemporaryDirectory(prefix="swiftplug-vllm-")
        model = args.export_model(self._folder.name)
        settings = {
            "model": model,
            # An exported folder has no revisions.
            "revision": options.revision if model != self._folder.name else None,
            "dtype": dtype,
            "seed": args.seed,
            "trust_remote_code": options.trust_remote_code,
            "quantization": "bitsandbytes" if options.quantization else None,  # to four bits, as vLLM loads the weights
            "gpu_memory_utilization": memory,
            **self._given,
            **required,
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
        return self._answers(prompts, self._sampling)

    def follow(self, args: Any, model: Any) -> None:
        """Load vLLM beside a model in training and let it sleep; see `Engine.follow`.

        Raises:
            UserError: The model has an adapter other than a plain LoRA, or as `open`.
        """
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        ends = inner.get_input_embeddings(), inner.get_output_embeddings()
        tied = inner.config.tie_word_embeddings
        learned = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
        if learned or any(isinstance(it, BaseTunerLayer) and not _is_plain_lora(it) for it in model.modules()):
            raise UserError(
                "engine 'vllm' takes the weights of a model trained in full or with a plain LoRA, not those of this "
                "tuner; engine 'transformers' follows any"
            )
        if tied and (any(isinstance(end, BaseTunerLayer) for end in ends) or ends[0].weight is not ends[1].weight):
            raise UserError(
                "engine 'vllm' has one matrix for the embedding and the head of this model, which the tuner trains "
                "apart; engine 'transformers' has both"
            )
        self._model, self._chat = inner, args.load_chat(inner)
        # vLLM joins the processes of a run, or is one, and then runs in this process.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            single = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
            for name, value in {**single, "MASTER_PORT": free.getsockname()[1]}.items():
                os.environ.setdefault(name, str(value))
        training = args.training_args
        self._load(
            args,
            "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32",
            self._memory or 0.3,
            distributed_executor_backend="external_launcher",
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",
        )
        self.rest()

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Answered]:
        """Draw candidates with the weights that the model in training has now; see `Engine.draw`.

        Their log-probabilities are those that vLLM gives after all that changes them, so with `top_p` or `top_k` there
        are none.
        """
        slept, self._sleeps = self._sleeps, False
        if slept:
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["weights"])
        self._llm.apply_model(lambda inner: inner.load_weights(_weights(self._model)))
        if slept:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # of other weights
        yield from self._answers(prompts, sampling)

    def rest(self) -> None:
        """Give back the GPU's memory: of its weights, which are sent again, and of keys and values."""
        if not self._sleeps:
            self._llm.sleep(level=2)
            self._sleeps = True

    def _answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Answered]:
        # Greedy candidates are all the same.
        num_different = sampling.num_return_sequences if sampling.temperature > 0 else 1
        answerable, requests, params = [], [], []
        stop = [self._chat.stop_text] if self._chat.stop_text else None
        known = self._model is not None and sampling.temperature > 0 and sampling.top_p == 1 and sampling.top_k == 0
        for prompt in prompts:
            try:
                ids, opened = self._chat.encode(prompt)
            except UserError as error:
                yield Answered(prompt.id, failure=str(error))
                continue
            ids = ids if prompt.ids is None else [*prompt.ids]
            if len(ids) >= self._longest:  # vLLM would reject all prompts because of one
                reason = f"the prompt has {len(ids):,} tokens, too many for max_model_len {self._longest:,}"
                yield Answered(prompt.id, failure=reason)
                continue
            answerable.append((prompt.id, opened))
            for index in range(num_different):
                requests.append({"prompt_token_ids": ids})
                params.append(
                    self._sampling_params(
                        max_tokens=sampling.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=sampling.top_k,
                        seed=sampling.seed_of(prompt.id, index),
                        stop_token_ids=self._chat.end_ids,
                        stop=stop,
                        **({"logprobs": 0} if known else {}),  # that of the drawn token alone
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
        ids = answer = list(output.token_ids)
        if output.finish_reason == "stop" and not isinstance(output.stop_reason, str):
            answer = ids[:-1]  # without the token that ended it, which may be one that only vLLM knows of
        completion = Completion(self._chat.answer(answer, opened), output.finish_reason or "unknown")
        if self._model is None:
            return completion
        logps = [ranked[token].logprob for token, ranked in zip(ids, output.logprobs or (), strict=False)]
        return completion._replace(ids=ids, logps=logps)

    def close(self) -> None:
        """Release the model, with which vLLM ends its processes, and remove its folder."""
        self._llm = self._model = None
        if self._folder is not None:
            self._folder.cleanup()


def _is_plain_lora(module: Any) -> bool:
    return isinstance(module, LoraLayer) and not module.lora_variant and not any(module.lora_bias.values())


@torch.no_grad()
def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model under the names that they have without adapters, each with what its LoRA adds.

    One sum at a time exists beside the model, which stays as it is.

    Args:
        model: The model inside PEFT's wrapper.
    """
    layers: dict[str, Any] = {
        f"{name}.base_layer.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    for name, weight in model.named_parameters():
        if ".lora_" in name or ".original_module." in name:
            continue
        value = weight.detach()
        if layer := layers.get(name):
            for adapter in layer.active_adapters:
                if adapter in layer.r:
                    value = value + layer.get_delta_weight(adapter).to(value.dtype)
        yield name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."), value

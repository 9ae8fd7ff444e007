"""Candidates from an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, or several behind one address."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from swiftplug.builtin.openai.chat import read_answer, to_api_messages, to_api_tools
from swiftplug.builtin.openai.client import HOW_TO_ASK, ChatClient, ClientOptions, RequestFailed
from swiftplug.plugin import Answered, Completion, Engine, Prompt, Sampling, UserError

_NUM_SEEDS = 2**31
"""Seeds are below this: some servers read them as signed 32-bit numbers."""
_ROUNDS_PER_BATCH = 16
"""A batch has at least this many times `concurrency` requests, so that the wait for its last ones matters little."""


class OpenAIEngine(Engine):
    """Sends one request per candidate to an OpenAI-compatible server, many in parallel.

    The key comes from the environment variable OPENAI_API_KEY; a server given by `base_url` needs none. The length is
    sent as `max_tokens`, and to OpenAI itself as `max_completion_tokens`. `top_p` and `top_k` are sent unless they are
    off. If a server rejects a field, remove it with a null in `extra_body`, for example `seed: null`.

    Reasoning that the server returns separately becomes a `<think>` block before the answer; tool calls become
    `<tool_call>` blocks after it.

    Args:
        base_url: Address of the server, usually ending in `/v1`; None for OPENAI_BASE_URL, else OpenAI's own.
        model: The model, as the server calls it; None for the run's `model`.
        concurrency: Number of parallel requests.
        timeout: Seconds for one try of a request.
        max_retries: Number of retries after a failed connection, a timeout, status 408, 409, 425, 429 or 5xx, or a
            malformed answer. The wait starts at half a second and doubles, or is what the server asks for.
        time_limit: Seconds after which a request is not retried.
        requests_per_minute: Maximum number of tries per minute, evenly spaced; None for no limit.
        extra_body: Additional fields of every request, such as `{chat_template_kwargs: {enable_thinking: false}}`.
    """

    may_change = HOW_TO_ASK

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        concurrency: PositiveInt = 16,
        timeout: PositiveFloat = 600,
        max_retries: NonNegativeInt = 7,
        time_limit: PositiveFloat = 1800,
        requests_per_minute: PositiveFloat | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._options = ClientOptions(
            base_url, concurrency, timeout, max_retries, time_limit, requests_per_minute, extra_body
        )
        self._client: ChatClient | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """Enough to keep all connections busy nearly to the end of a batch."""
        return max(64, _ROUNDS_PER_BATCH * self._options.concurrency // sampling.num_return_sequences)

    def check_run(self, args: Any) -> None:
        """Check that a model is named, and that nothing is asked for that only the server can do."""
        if args.data.template is not None:
            raise UserError("data.template: engine 'openai' cannot use it, a server has its own chat template; drop it")
        if args.adapter is not None:
            raise UserError(
                "adapter: engine 'openai' cannot load it; let the server load it, and name it there with --model"
            )
        if not (self._model or args.model):
            raise UserError("no model; name the one to ask the server for with --model or the key 'model'")

    def open(self, args: Any, sampling: Sampling) -> None:
        """Check the address and the key; see `Engine.open`."""
        self.check_run(args)
        model = self._model or args.model.name
        self._client = ChatClient("engine 'openai'", model, self._options)
        self._sampling = sampling

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Generate the candidates of prompts; see `Engine.generate`.

        Raises:
            UserError: No request will be answered: the server rejects the key or the model, or is gone.
        """
        assert self._client is not None, "not opened"
        indices = range(self._sampling.num_return_sequences)
        bodies: list[tuple[str, dict[str, Any]]] = []
        for prompt in prompts:
            try:
                bodies.append((prompt.id, self._request(prompt)))
            except UserError as error:
                yield Answered(prompt.id, failure=str(error))
        drawn: dict[str, dict[int, Completion]] = {prompt_id: {} for prompt_id, _ in bodies}
        requests = (
            ((prompt_id, index), {**body, "seed": self._sampling.seed_of(prompt_id, index) % _NUM_SEEDS})
            for prompt_id, body in bodies
            for index in indices
            if prompt_id in drawn
        )
        with closing(self._client.ask_all(requests, read_answer)) as answers:
            for (prompt_id, index), answer in answers:
                if prompt_id not in drawn:
                    continue  # another of its candidates failed
                if isinstance(answer, RequestFailed):
                    if answer.server_is_gone:
                        raise UserError(
                            f"{self._client.place}: the server is gone: {answer.reason}; "
                            "continue with --resume when it is back"
                        )
                    del drawn[prompt_id]
                    yield Answered(prompt_id, failure=answer.reason)
                else:
                    drawn[prompt_id][index] = answer
                    if len(drawn[prompt_id]) == len(indices):
                        completions = drawn.pop(prompt_id)
                        yield Answered(prompt_id, [completions[index] for index in indices])
                if not drawn:
                    return  # the remaining requests belong to failed prompts

    def close(self) -> None:
        """Abandon all requests and close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """What is asked for all candidates of a prompt, without their seeds."""
        assert self._client is not None, "not opened"
        sampling = self._sampling
        return {
            "messages": to_api_messages(prompt.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "top_k": sampling.top_k or None,
            "max_completion_tokens" if self._client.is_openai else "max_tokens": sampling.max_new_tokens,
            "tools": to_api_tools(prompt.tools) if prompt.tools else None,
            "chat_template_kwargs": dict(prompt.chat_template_kwargs) or None,
        }

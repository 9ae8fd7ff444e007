"""Candidates from an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, or a fleet behind one address."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from swiftplug.builtin.background_loop import BackgroundLoop
from swiftplug.builtin.openai_chat import Answer, as_messages, as_tools
from swiftplug.builtin.openai_server import (
    Limits,
    RequestFailedError,
    Server,
    ServerGoneError,
    Session,
    cancel,
    gather,
)
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Completion, Engine, Prompt, Sampling

_WHERE = "engine 'openai'"
_SEEDS = 2**31
"""Seeds that every server takes lie below; some read them as signed 32-bit numbers."""
_FULL_WAVES = 16
"""How many times `concurrency` the requests of a batch are at least, so that its slow end weighs little."""


class OpenAIEngine(Engine):
    """Asks an OpenAI-compatible server, once for each candidate, many at a time.

    The key comes from the environment variable OPENAI_API_KEY; a server given by `base_url` needs none. The length goes
    as `max_tokens`, which compatible servers take, and to OpenAI itself as `max_completion_tokens`, which all models
    there take. `top_p` and `top_k` are sent where they are not off. What a server refuses nevertheless can be taken out
    of the requests by a null in `extra_body`, `seed: null` say.

    Reasoning that the server tells apart becomes a `<think>` block before the answer, calls of tools `<tool_call>`
    blocks behind it.

    Args:
        base_url: Its address, mostly ending in `/v1`; None for the environment's OPENAI_BASE_URL, else OpenAI's own.
        model: The model as the server calls it; None for the run's `model`.
        concurrency: Requests at once.
        timeout: Seconds for one try of a request.
        max_retries: Further tries of a request that met no connection, a timeout, a 408, 409, 425, 429 or 5xx, or an
            answer that is none; with doubling waits from half a second on, or as long as the server says.
        time_limit: Seconds after which no further try of a request is begun.
        requests_per_minute: Tries begun in a minute, evenly; None for as many as may be.
        extra_body: Fields of every request, such as `{chat_template_kwargs: {enable_thinking: false}}`.
    """

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
        self._base_url = base_url
        self._model = model
        self._limits = Limits(concurrency, timeout, max_retries, time_limit, requests_per_minute)
        self._extra_body = extra_body
        self._loop: BackgroundLoop | None = None
        self._session: Session | None = None

    def prompts_at_once(self, sampling: Sampling) -> int:
        """Enough to keep all connections busy nearly to the end of a batch."""
        return max(64, _FULL_WAVES * self._limits.concurrency // sampling.num_return_sequences)

    def open(self, args: Any, sampling: Sampling) -> None:
        """Check the address, the key and the model's name; see `Engine.open`."""
        if args.data.template is not None:
            raise UserError("data.template: engine 'openai' cannot use it, a server has its own chat template; drop it")
        if args.adapter is not None:
            raise UserError(
                "adapter: engine 'openai' cannot load it; let the server load it, and name it there with --model"
            )
        model = self._model or (args.model.name if args.model else None)
        if model is None:
            raise UserError("no model; name the one to ask the server for with --model or the key 'model'")
        self._server = Server(_WHERE, self._base_url, model, self._limits, self._extra_body)
        self._sampling = sampling
        self._loop = BackgroundLoop()
        self._session = self._loop.start(_connect(self._server)).result()

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts as fast as the server does; see `Engine.generate`.

        Raises:
            UserError: No request will be answered: the key or the model is refused, or the server is gone.
        """
        assert self._loop is not None, "not opened"
        answers: SimpleQueue[Answered | None] = SimpleQueue()
        work = self._loop.start(self._answer_all(prompts, answers.put))
        work.add_done_callback(lambda _: answers.put(None))
        try:
            while (answered := answers.get()) is not None:
                yield answered
            work.result()
        finally:
            work.cancel()

    def close(self) -> None:
        """End all requests and the connections."""
        if self._loop is not None:
            if self._session is not None:  # connecting may have failed
                self._loop.start(self._session.close()).result()
            self._loop.close()
            self._loop = None

    async def _answer_all(self, prompts: Sequence[Prompt], tell: Callable[[Answered], None]) -> None:
        tasks = [asyncio.create_task(self._answer(prompt)) for prompt in prompts]
        try:
            for answered in asyncio.as_completed(tasks):
                tell(await answered)
        finally:
            await cancel(tasks)

    async def _answer(self, prompt: Prompt) -> Answered:
        """All candidates of a prompt; one that fails ends the others."""
        indices = range(self._sampling.num_return_sequences)
        try:
            completions = await gather(self._complete(prompt, index) for index in indices)
        except ServerGoneError as error:
            place = f"{_WHERE}: {self._server.place}"
            raise UserError(f"{place}: the server is gone: {error}; go on with --resume when it is back") from None
        except RequestFailedError as error:
            return Answered(prompt.id, failure=str(error))
        return Answered(prompt.id, completions)

    async def _complete(self, prompt: Prompt, index: int) -> Completion:
        assert self._session is not None, "not opened"
        answer = await self._session.ask(as_messages(prompt.messages), self._fields(prompt, index), _as_it_is)
        return Completion(answer.text, answer.finish_reason)

    def _fields(self, prompt: Prompt, index: int) -> dict[str, Any]:
        sampling = self._sampling
        return {
            "seed": sampling.seed_of(prompt.id, index) % _SEEDS,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "top_k": sampling.top_k or None,
            "max_completion_tokens" if self._server.is_openai else "max_tokens": sampling.max_new_tokens,
            "tools": as_tools(prompt.tools) if prompt.tools else None,
        }


async def _connect(server: Server) -> Session:
    return server.connect()


def _as_it_is(answer: Answer) -> Answer:
    return answer

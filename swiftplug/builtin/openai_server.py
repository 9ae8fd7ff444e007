"""An OpenAI-compatible server as the engine `openai` and the PRM `client` use it: paced, retried, its key secret."""

import asyncio
import json
import math
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from openai import AsyncOpenAI, OpenAIError

from swiftplug.builtin.openai_chat import Answer, MalformedAnswerError, read_answer
from swiftplug.builtin.openai_trouble import Trouble, shortened, trouble_of
from swiftplug.errors import UserError

Read = TypeVar("Read")

OPENAI = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second try, doubled before each further one, and where that ends."""

_NO_KEY = "none"
_OURS = ("model", "messages", "n", "stream")


class RequestFailedError(Exception):
    """A request brought no answer; the message says why in one line, without the key."""


class ServerGoneError(RequestFailedError):
    """Nobody listened at the server's address any more when a request was tried for the last time."""


class Limits(NamedTuple):
    """How a server is used.

    Attributes:
        concurrency: Requests at once.
        timeout: Seconds for one try of a request.
        max_retries: Further tries of a request.
        time_limit: Seconds after which no further try of a request is begun.
        requests_per_minute: Tries begun in a minute, evenly; None for as many as may be.
    """

    concurrency: int
    timeout: float
    max_retries: int
    time_limit: float
    requests_per_minute: float | None


class Server:
    """A server, its key and the model to ask it for.

    The key comes from the environment variable OPENAI_API_KEY; a server that is named needs none.

    Args:
        where: Who uses it, for messages: `engine 'openai'`.
        base_url: Its address; None for that in OPENAI_BASE_URL, else OpenAI's own.
        model: The model, by the name that it has there.
        limits: How it is used.
        extra_body: Fields of every request, over those that it has; a null takes one away.

    Raises:
        UserError: The address is none, or there is no key where one is needed.
    """

    def __init__(
        self, where: str, base_url: str | None, model: str, limits: Limits, extra_body: dict[str, Any] | None
    ) -> None:
        named = base_url or os.environ.get("OPENAI_BASE_URL")
        self.where = where
        self.base_url = named or OPENAI
        self.model = model
        self.limits = limits
        self.extra_body = extra_body or {}
        self.has_answered = False
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        self._check(named)

    def __repr__(self) -> str:
        return f"Server({self.place})"

    @property
    def place(self) -> str:
        """Its address and model, for messages."""
        return f"{self.base_url.partition('?')[0]}, model {self.model!r}"

    @property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own."""
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI).hostname

    def connect(self) -> "Session":
        """A connection, to be used with `async with` in one event loop."""
        return Session(self)

    def client(self) -> AsyncOpenAI:
        """The library's client; the tries and their time are counted here, not there."""
        return AsyncOpenAI(base_url=self.base_url, api_key=self._key or _NO_KEY, max_retries=0, timeout=None)

    def failure(self, trouble: Trouble, tries: int) -> Exception:
        """What to raise for a trouble that no further try follows."""
        after = f" after {tries} tries" if tries > 1 else ""
        told = f"{trouble.kind}{after}: {shortened(self._without_key(trouble.detail))}"
        if trouble.wait and trouble.wait > self.limits.time_limit:
            hint = f"it asks to wait {trouble.wait:.0f} s, longer than time_limit; go on then with --resume"
            return UserError(f"{self.where}: {self.place}: {told} ({hint})")
        if trouble.fatal == "always" or (trouble.fatal == "at first" and not self.has_answered):
            return UserError(f"{self.where}: {self.place}: {told} ({trouble.hint})")
        return ServerGoneError(told) if trouble.gone else RequestFailedError(told)

    def _check(self, named: str | None) -> None:
        try:
            parts = urlsplit(self.base_url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise UserError(f"{self.where}: base_url: expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UserError(f"{self.where}: base_url: must hold no password; a key goes into OPENAI_API_KEY")
        if not self._key and not named:
            raise UserError(
                f"{self.where}: the environment variable OPENAI_API_KEY is not set; "
                "set it, or name a server that needs no key with base_url"
            )
        if not (self._key.isascii() and (self._key or _NO_KEY).isprintable()):
            raise UserError(f"{self.where}: OPENAI_API_KEY holds characters that no key has")
        for name in _OURS:
            if name in self.extra_body:
                raise UserError(f"{self.where}: extra_body: {name!r} is not to be set there")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class Session:
    """A connection to a server, in one event loop; get one from `Server.connect`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client = server.client()
        self._slots = asyncio.Semaphore(server.limits.concurrency)
        self._opens_at = 0.0  # no try begins before; what a rate limit, or the server itself, wants

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def ask(
        self, messages: Sequence[dict[str, Any]], fields: dict[str, Any], read: Callable[[Answer], Read]
    ) -> Read:
        """Ask until there is an answer that can be read.

        Waits between tries double from half a second on and vary by a quarter, so that requests which failed together
        do not come back together; a server that says how long to wait (Retry-After) is obeyed, by all requests.

        Args:
            messages: The conversation.
            fields: Further fields of the request.
            read: Reads the answer; raises `MalformedAnswerError` for one that must be asked for again.

        Raises:
            RequestFailedError: No try brought one.
            UserError: No request will bring one: the key or the model is refused, or nobody ever listened there.
        """
        limits, clock = self._server.limits, asyncio.get_running_loop().time
        request = {**fields, **self._server.extra_body}
        request = {name: value for name, value in request.items() if value is not None}
        began = math.inf
        for tries in range(1, limits.max_retries + 2):
            try:
                async with self._slots:
                    await self._turn()
                    began = min(began, clock())
                    answer = read(await self._try(messages, request))
                    self._server.has_answered = True
                    return answer
            except (TimeoutError, MalformedAnswerError, OpenAIError, UnicodeEncodeError) as error:
                trouble = trouble_of(error, limits.timeout)
            wait = _wait(trouble, tries)
            failure = self._server.failure(trouble, tries)
            last = tries > limits.max_retries or clock() + wait > began + limits.time_limit
            if isinstance(failure, UserError) or not trouble.retried or last:
                raise failure from None  # the cause may hold the key
            if trouble.wait is not None:
                self._opens_at = max(self._opens_at, clock() + trouble.wait)
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def _try(self, messages: Sequence[dict[str, Any]], request: dict[str, Any]) -> Answer:
        completions: Any = self._client.chat.completions.with_raw_response
        async with asyncio.timeout(self._server.limits.timeout):
            response = await completions.create(model=self._server.model, messages=messages, extra_body=request)
        text = response.http_response.text
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise MalformedAnswerError(f"it is not JSON: {text}") from None
        return read_answer(body)

    async def _turn(self) -> None:
        """Wait until a try may begin."""
        clock, rate = asyncio.get_running_loop().time, self._server.limits.requests_per_minute
        while (wait := self._opens_at - clock()) > 0:
            await asyncio.sleep(wait)
        if rate is not None:
            self._opens_at = clock() + 60 / rate


def _wait(trouble: Trouble, tries: int) -> float:
    """Seconds until the next try."""
    if trouble.wait is not None:
        return trouble.wait * random.uniform(1, 1.1)
    return min(FIRST_WAIT * 2.0 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.75, 1.25)


async def gather(work: Iterable[Coroutine[Any, Any, Read]]) -> list[Read]:
    """What several coroutines return, in order; the first error ends them all and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel(tasks)


async def cancel(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """End tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""The client that the engine `openai` and the PRM `client` share: requests in parallel, paced and retried.

The openai library makes each request, but this module retries: the library's retries have no time limit, cannot be
stopped while they wait, give up on a long Retry-After and never repeat a request whose answer is malformed.
"""

import html
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable
from email.utils import mktime_tz, parsedate_tz
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI
from pydantic import HttpUrl, TypeAdapter, ValidationError

from swiftplug.builtin.openai.chat import MalformedAnswerError, ReportedError
from swiftplug.plugin import UserError

Key = TypeVar("Key")
Result = TypeVar("Result")

OPENAI_URL = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second try, doubled before each further one
LONGEST_DETAIL = 300  # characters of a server's error that a message repeats

_RESERVED_FIELDS = ("model", "messages", "n", "stream")
_RETRIED_STATUSES = (408, 409, 425, 429)
_CHECK_URL = "base_url, which mostly ends in /v1"
# Errors that every request would meet, and what to check; the second table applies only before the first answer.
_ALWAYS_FATAL = {
    "401": "check OPENAI_API_KEY",
    "402": "the account cannot pay",
    "insufficient_quota": "the account cannot pay",
}
_FATAL_AT_FIRST = {
    "403": "check OPENAI_API_KEY and what it may use",
    "404": f"check the model's name, and {_CHECK_URL}",
    "405": f"check {_CHECK_URL}",
    **dict.fromkeys(("unsupported_parameter", "unsupported_value", "unknown_parameter"), "see the option extra_body"),
}


class ClientOptions(NamedTuple):
    """The options that the engine and the judge share; their docstrings explain them."""

    base_url: str | None
    concurrency: int
    timeout: float
    max_retries: int
    time_limit: float
    requests_per_minute: float | None
    extra_body: dict[str, Any] | None


HOW_TO_ASK = ("base_url", "concurrency", "timeout", "max_retries", "time_limit", "requests_per_minute")
"""The options that do not change what is asked."""


class RequestFailed(NamedTuple):
    """Why a request got no answer: a reason in one line without the key, and what can be done.

    With a hint, all requests would fail like this one.
    """

    reason: str
    can_retry: bool = True
    retry_after: float | None = None
    hint: str = ""
    server_is_gone: bool = False


class ChatClient:
    """Sends chat requests for one model to one server.

    The key comes from the environment variable OPENAI_API_KEY; a server given by its address needs none.

    Raises:
        UserError: The address is invalid, or a key is needed and missing.
    """

    def __init__(self, used_by: str, model: str, options: ClientOptions) -> None:
        given_url = options.base_url or os.environ.get("OPENAI_BASE_URL")
        url = given_url or OPENAI_URL
        self.place = f"{used_by}: {url.partition('?')[0]}, model {model!r}"  # for messages
        self._model, self._options, self._extra = model, options, options.extra_body or {}
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if problem := self._problem(url, key_needed=not given_url):
            raise UserError(f"{used_by}: {problem}")
        self.is_openai = urlsplit(url).hostname == urlsplit(OPENAI_URL).hostname
        self._client = OpenAI(base_url=url, api_key=self._key or "none", max_retries=0, timeout=options.timeout)
        self._has_answered = False
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(options.concurrency)  # also for requests abandoned before
        self._next_start = 0.0  # the earliest time of the next try
        self._stop = threading.Event()

    def ask_all(
        self, requests: Iterable[tuple[Key, dict[str, Any]]], read: Callable[[str], Result]
    ) -> Generator[tuple[Key, Result | RequestFailed]]:
        """Send requests in parallel; yield each result as soon as it is known.

        Closing the generator abandons running requests: they are in daemon threads, so nothing waits for a slow server.

        Args:
            requests: Pairs of the caller's key and the request; taken when a thread is free.
            read: Parses the body of a response; raises `MalformedAnswerError` if the request must be repeated.

        Raises:
            UserError: Every request will fail: the server rejects the key or the model, or cannot be reached.
        """
        waiting, lock = iter(requests), threading.Lock()
        outcomes: SimpleQueue[Any] = SimpleQueue()
        self._stop = stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    with lock:
                        request = next(waiting, None)
                    if request is None:
                        break
                    outcomes.put((request[0], self._ask(request[1], read, stop)))
                outcomes.put(None)
            except Exception as error:
                outcomes.put(error)

        num_running = 0
        try:
            while num_running < self._options.concurrency:
                threading.Thread(target=work, name="swiftplug-requests", daemon=True).start()
                num_running += 1
            while num_running:
                outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome from None  # the context may hold the key
                if outcome is None:
                    num_running -= 1
                else:
                    yield outcome
        finally:
            stop.set()

    def close(self) -> None:
        """Abandon all requests and close the connections."""
        self._stop.set()
        self._client.close()

    def _ask(
        self, request: dict[str, Any], read: Callable[[str], Result], stop: threading.Event
    ) -> Result | RequestFailed:
        """Try until a response can be read. Waits are random, so that requests that failed together are spread out."""
        body = {name: value for name, value in {**request, **self._extra}.items() if value is not None}
        key = "chat_template_kwargs"
        if request.get(key) and key in body:
            body[key] = {**body[key], **request[key]}  # a row's own variables win
        deadline, tries = 0.0, 0
        while self._wait_for_turn(stop):
            tries += 1
            try:
                with self._slots:
                    if stop.is_set():
                        break
                    deadline = deadline or time.monotonic() + self._options.time_limit
                    result = read(self._send(body, stop))
                self._has_answered = True
                return result
            except Exception as error:
                failed = self._explain(error, f" after {tries} tries" if tries > 1 else "")
            if failed.retry_after is None:
                wait = min(FIRST_WAIT * 2.0 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.75, 1.25)
            else:
                wait = failed.retry_after * random.uniform(1, 1.1)
            if failed.hint:
                raise UserError(f"{self.place}: {failed.reason} ({failed.hint})")
            if not failed.can_retry or tries > self._options.max_retries or time.monotonic() + wait > deadline:
                return failed
            if failed.retry_after is not None:
                with self._lock:
                    self._next_start = max(self._next_start, time.monotonic() + failed.retry_after)
            stop.wait(wait)
        return RequestFailed("stopped")

    def _wait_for_turn(self, stop: threading.Event) -> bool:
        """Wait until the rate limit and the server allow a try; false if everything is to stop."""
        rate = self._options.requests_per_minute
        wait = 0.0
        while not stop.wait(wait):
            with self._lock:
                wait = self._next_start - time.monotonic()
                if wait <= 0:
                    self._next_start = time.monotonic() + 60 / rate if rate else 0.0
                    return True
        return False

    def _send(self, body: dict[str, Any], stop: threading.Event) -> str:
        deadline = time.monotonic() + self._options.timeout
        received = bytearray()
        completions: Any = self._client.chat.completions.with_streaming_response
        with completions.create(model=self._model, messages=body["messages"], extra_body=body) as response:
            for part in response.iter_bytes():
                received += part
                # The library limits only the time between two parts, so a slow stream would never end.
                if stop.is_set() or time.monotonic() > deadline:
                    raise TimeoutError
        try:
            return received.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise MalformedAnswerError(f"the response is not UTF-8 ({error.reason})") from None

    def _explain(self, error: Exception, after: str) -> RequestFailed:
        if isinstance(error, APIStatusError):
            return self._explain_status(error, after)
        if isinstance(error, ReportedError):
            return RequestFailed(f"the server reports an error{after}: {self._shorten(str(error))}", error.can_retry)
        if isinstance(error, MalformedAnswerError):
            return RequestFailed(f"malformed answer{after}: {self._shorten(str(error))}")
        if isinstance(error, UnicodeEncodeError):
            return RequestFailed(
                f"the prompt contains an unpaired surrogate, which is invalid Unicode ({error.reason})", can_retry=False
            )
        cause = error.__cause__ or error if isinstance(error, APIConnectionError) else error
        # The library uses httpx or, from 3.0 on, httpx2: their errors have the same names.
        names = {cls.__name__ for cls in type(cause).__mro__}
        if isinstance(error, TimeoutError | APITimeoutError) or "TimeoutException" in names:
            return RequestFailed(f"no answer{after}: nothing within {self._options.timeout:g} s")
        if "ConnectError" in names:
            hint = "" if self._has_answered else "is it running?"
            return RequestFailed(f"no connection{after}: {self._shorten(str(cause))}", hint=hint, server_is_gone=True)
        if isinstance(error, APIConnectionError) or "RequestError" in names:
            return RequestFailed(f"the connection broke{after}: {self._shorten(str(cause)) or type(cause).__name__}")
        raise error

    def _explain_status(self, error: APIStatusError, after: str) -> RequestFailed:
        status, text, retry_after = error.status_code, error.body, _read_retry_after(error.response.headers)
        if isinstance(text, dict):  # the form of OpenAI, of FastAPI, or any other
            text = text.get("message") or text.get("detail") or text
        if not isinstance(text, str):
            text = json.dumps(text, ensure_ascii=False) if text else ""
        hints = _ALWAYS_FATAL if self._has_answered else {**_FATAL_AT_FIRST, **_ALWAYS_FATAL}
        code = str(error.code)  # some gateways repeat there the status of a server behind them, which is not theirs
        hint = hints.get(str(status)) or ("" if code.isdecimal() else hints.get(code, ""))
        if retry_after and retry_after > self._options.time_limit:
            hint = f"it asks to wait {retry_after:.0f} s, longer than time_limit; continue later with --resume"
        reason = f"HTTP {status}{after}: {self._shorten(text) or error.response.reason_phrase}"
        return RequestFailed(reason, status in _RETRIED_STATUSES or status >= 500, retry_after, hint)

    def _shorten(self, text: str) -> str:
        """A text in one line without the key; for a web page, its title. The key is removed before the text is cut."""
        text = text.replace(self._key, "***") if self._key else text
        if "<html" in text.lower():
            title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
            text = f"a web page titled {html.unescape(title[1]).strip()!r}" if title else "a web page"
        line = " ".join(text.split())
        return line if len(line) <= LONGEST_DETAIL else f"{line[:LONGEST_DETAIL]}..."

    def _problem(self, url: str, *, key_needed: bool) -> str:
        """What is wrong with the settings; empty if nothing is."""
        try:
            parts = TypeAdapter(HttpUrl).validate_python(url)
        except ValidationError:
            return "base_url: expected an address such as http://localhost:8000/v1"
        if parts.username or parts.password:
            return "base_url: must not hold a password; put the key into OPENAI_API_KEY"
        if key_needed and not self._key:
            return "OPENAI_API_KEY is not set; set it, or name a server that needs no key with base_url"
        if not (self._key.isascii() and self._key.isprintable()):
            return "OPENAI_API_KEY holds characters that no key has"
        reserved = [name for name in _RESERVED_FIELDS if name in self._extra]
        return f"extra_body: {reserved[0]!r} cannot be set there" if reserved else ""


def _read_retry_after(headers: Any) -> float | None:
    """Seconds to wait, from Retry-After (a number or a date, RFC 9110, section 10.2.3) or OpenAI's retry-after-ms."""
    unit = 0.001 if "retry-after-ms" in headers else 1.0
    value = headers.get("retry-after-ms") or headers.get("retry-after", "0")
    try:
        seconds = float(value) * unit
    except ValueError:
        date = parsedate_tz(value)
        seconds = mktime_tz(date) - time.time() if date else 0.0
    return seconds if 0 < seconds < math.inf else None

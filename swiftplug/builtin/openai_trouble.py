"""What goes wrong with a request to a server: told in one line, and judged."""

import html
import json
import re
import time
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any

from openai import APIConnectionError, APIStatusError, APITimeoutError

from swiftplug.builtin.openai_chat import MalformedAnswerError

LONGEST_DETAIL = 300
"""Characters of what a server said that a message repeats."""

_ALWAYS_FATAL = {401: "check OPENAI_API_KEY", 402: "the account cannot pay"}
_FATAL_AT_FIRST = {
    403: "check OPENAI_API_KEY and what it may use",
    404: "check the model's name, and base_url, which mostly ends in /v1",
    405: "check base_url, which mostly ends in /v1",
}
_FATAL_CODES = {
    "unsupported_parameter": "see the option extra_body",
    "unsupported_value": "see the option extra_body",
    "unknown_parameter": "see the option extra_body",
}
_RETRIED = (408, 409, 425, 429)


@dataclass(frozen=True)
class Trouble:
    """Why a try of a request brought no answer.

    Attributes:
        kind: The sort: `HTTP 500`, `no connection`, `malformed answer`...
        detail: What the server said or what was found, in one line; it may hold the key.
        retried: Whether another try may bring an answer.
        wait: Seconds that the server asks to wait for, or None.
        fatal: Whether every request would meet it: `always`, or as long as there was no answer yet (`at first`).
        hint: What to look at, for one that is fatal.
        gone: Whether there was no server at all.
    """

    kind: str
    detail: str
    retried: bool
    wait: float | None = None
    fatal: str = ""
    hint: str = ""
    gone: bool = False


def trouble_of(error: Exception, timeout: float) -> Trouble:
    """Judge what a request raised.

    Args:
        error: One of Python's, a `MalformedAnswerError`, or an error of the openai library.
        timeout: Seconds that the request had.
    """
    match error:
        case MalformedAnswerError():
            return Trouble("malformed answer", _one_line(str(error)), retried=True)
        case TimeoutError() | APITimeoutError():
            return Trouble("no answer", f"nothing within {timeout:g} s", retried=True)
        case UnicodeEncodeError():
            return Trouble("unsendable", f"the prompt holds half a character ({error.reason})", retried=False)
        case APIStatusError():
            return _of_status(error)
        case APIConnectionError():
            return _of_connection(error)
        case _:
            raise error


def _of_status(error: APIStatusError) -> Trouble:
    status, code = error.status_code, _code(error.body)
    fatal, hint = "", ""
    if status in _ALWAYS_FATAL or code == "insufficient_quota":
        fatal, hint = "always", _ALWAYS_FATAL.get(status, "the account cannot pay")
    elif status in _FATAL_AT_FIRST or code in _FATAL_CODES:
        fatal, hint = "at first", _FATAL_AT_FIRST.get(status) or _FATAL_CODES[code]
    return Trouble(
        f"HTTP {status}",
        _one_line(_said(error.body)) or error.response.reason_phrase,
        retried=status in _RETRIED or status >= 500,
        wait=_retry_after(error.response.headers),
        fatal=fatal,
        hint=hint,
    )


def _of_connection(error: APIConnectionError) -> Trouble:
    cause = error.__cause__ or error
    # The library hands on errors of httpx or, from 3.0 on, of httpx2: their classes have the same names.
    if any(cls.__name__ == "ConnectError" for cls in type(cause).__mro__):
        detail = _one_line(str(cause))
        return Trouble("no connection", detail, retried=True, fatal="at first", hint="is it running?", gone=True)
    return Trouble("the connection broke", _one_line(str(cause)) or type(cause).__name__, retried=True)


def _retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait for: a number, or a date (RFC 9110, section 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = parsedate_tz(value)
        seconds = mktime_tz(date) - time.time() if date else 0.0
    return seconds if seconds > 0 else None


def _code(body: object) -> str:
    error = body.get("error", body) if isinstance(body, dict) else None
    return str(error.get("code", "")) if isinstance(error, dict) else ""


def _said(body: object) -> str:
    """What a server says in the body of an error: OpenAI's form, FastAPI's, or anything."""
    if isinstance(body, str):
        return body
    told = body
    for key in ("error", "message", "detail"):
        if isinstance(told, dict) and told.get(key):
            told = told[key]
    return told if isinstance(told, str) else json.dumps(told, ensure_ascii=False) if told else ""


def _one_line(text: str) -> str:
    """A text in one line; of a page the title."""
    if "<html" in text.lower():
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        text = f"a web page titled {html.unescape(title[1]).strip()!r}" if title else "a web page"
    return " ".join(text.split())


def shortened(detail: str) -> str:
    """As much of a detail as a message repeats; it must not hold the key any more, of which it may cut off a part."""
    return detail if len(detail) <= LONGEST_DETAIL else f"{detail[:LONGEST_DETAIL]}..."

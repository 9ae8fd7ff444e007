"""Conversion of messages and tools to OpenAI's chat API, and of its responses to text."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from swiftplug.builtin.tools.formats import hermes
from swiftplug.plugin import Completion


class MalformedAnswerError(Exception):
    """A response does not have the expected form; the message explains why."""


def read_answer(body: str) -> Completion:
    """Read the answer from the body of a response of `POST /chat/completions`.

    Reasoning is in `message.reasoning_content` (DeepSeek, SGLang, vLLM) or `message.reasoning` (OpenRouter, newer
    vLLM); it becomes a `<think>` block. Tool calls follow the content in the format `hermes`.
    """
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        content = message.get("content")
        if content is None:
            content = message.get("refusal")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        calls = hermes.format_calls([_read_call(call["function"]) for call in message.get("tool_calls") or []])
        reason = choice.get("finish_reason")
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        raise MalformedAnswerError(f"expected a chat completion, found {body}") from None
    finish_reason = reason if isinstance(reason, str) and reason else "unknown"
    # An answer without content needs calls or reasoning, unless the server cut the model off before its first word.
    if content is None and not calls and not reasoning and finish_reason not in ("length", "content_filter"):
        raise MalformedAnswerError(f"the message has no content (finish_reason {finish_reason!r})")
    if not isinstance(content or "", str) or not isinstance(reasoning, str):
        raise MalformedAnswerError("the content is not a text")
    text = "\n".join(part for part in (content, calls) if part)
    if reasoning:
        cut_off = finish_reason == "length" and not text  # the model did not finish its reasoning
        text = f"<think>\n{reasoning.strip(chr(10))}" + ("" if cut_off else "\n</think>\n\n" + text.lstrip("\n"))
    # JSON can hold an unpaired surrogate, if a server cut a character in two; a UTF-8 file cannot.
    return Completion(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), finish_reason)


def to_api_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages in the form of the API: calls have ids and arguments as JSON text, results have the id of a call."""
    converted: list[dict[str, Any]] = []
    new_ids = (f"call_{number}" for number in count())
    unanswered: list[str] = []
    for message in map(dict, messages):
        if message.get("tool_calls"):
            message["tool_calls"] = [_to_api_call(call, next(new_ids)) for call in message["tool_calls"]]
            message.setdefault("content", None)
            unanswered = [call["id"] for call in message["tool_calls"]]
        elif message.get("role") == "tool":
            message.setdefault("tool_call_id", unanswered.pop(0) if unanswered else "call_0")
        converted.append(message)
    return converted


def to_api_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools in the form of the API, from OpenAI-style or bare descriptions of functions; a string is parsed as JSON."""
    parsed = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in parsed]


def plain_text(content: Any) -> str:
    """The content of a message, which may be a list of parts, as one text."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content or [])


def _read_call(function: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments parsed as JSON, or unchanged if the model wrote something else."""
    arguments = function["arguments"]
    with suppress(ValueError, RecursionError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"name": function["name"], "arguments": arguments}


def _to_api_call(call: Mapping[str, Any], new_id: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or new_id,
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }

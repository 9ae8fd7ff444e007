"""Messages and tools as the chat API of OpenAI wants them, and the text of what it answers."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from swiftplug.builtin.tools.formats import hermes


class MalformedAnswerError(Exception):
    """An answer is not what the chat API gives; the message says how it differs."""


class Answer(NamedTuple):
    """What a server answered.

    Attributes:
        text: Reasoning in a `<think>` block, then the content, then calls of tools, each in a `<tool_call>` block.
        finish_reason: As the server says it; `unknown` where it says nothing.
    """

    text: str
    finish_reason: str


def read_answer(body: Any) -> Answer:
    """The answer in the body of a response of `POST /chat/completions`.

    Reasoning stands in `message.reasoning_content` (DeepSeek, SGLang, vLLM) or `message.reasoning` (OpenRouter, newer
    vLLM). Calls of tools are written as the tools format `hermes` does. A content of null is an answer only where there
    is reasoning or a call beside it, or where the server cut the answer off before its first visible token.

    Args:
        body: The parsed JSON.

    Raises:
        MalformedAnswerError: It is something else.

    Example:
        >>> message = {"content": "4", "reasoning_content": "2 + 2"}
        >>> read_answer({"choices": [{"message": message, "finish_reason": "stop"}]}).text
        '<think>\\n2 + 2\\n</think>\\n\\n4'
    """
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise MalformedAnswerError("the choice has no message")
    reason = choice.get("finish_reason")
    finish_reason = reason if isinstance(reason, str) and reason else "unknown"
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    calls = _calls(message.get("tool_calls") or [])
    if content is None and not calls and not reasoning and finish_reason not in ("length", "content_filter"):
        raise MalformedAnswerError(f"the message has no content (finish_reason {finish_reason!r})")
    if not isinstance(content or "", str) or not isinstance(reasoning, str):
        raise MalformedAnswerError("the content is not a text")
    text = "\n".join(part for part in (content, calls) if part)
    if reasoning:
        text = _with_reasoning(reasoning.strip("\n"), text.lstrip("\n"), cut_off=finish_reason == "length" and not text)
    return Answer(_without_lone_surrogates(text), finish_reason)


def as_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the API takes them: calls with an id and their arguments as JSON text, results with a call's id.

    Args:
        messages: As a chat template reads them.
    """
    written: list[dict[str, Any]] = []
    unanswered: list[str] = []
    made = 0
    for message in messages:
        plain = dict(message)
        if plain.get("tool_calls"):
            plain["tool_calls"] = [
                _call_as_written(call, f"call_{made + number}") for number, call in enumerate(plain["tool_calls"])
            ]
            plain.setdefault("content", None)
            made += len(plain["tool_calls"])
            unanswered = [call["id"] for call in plain["tool_calls"]]
        elif plain.get("role") == "tool":
            following = unanswered.pop(0) if unanswered else "call_0"
            plain.setdefault("tool_call_id", following)
        written.append(plain)
    return written


def as_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Tools as the API takes them.

    Args:
        tools: OpenAI-style descriptions, or bare ones of functions; a text is read as JSON.
    """
    parsed = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in parsed]


def plain_text(content: Any) -> str:
    """The content of a message, which may be a list of parts, as one text."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content or [])


def _first_choice(body: Any) -> dict[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list):
        raise MalformedAnswerError(f"it has no choices: {json.dumps(body, ensure_ascii=False)}")
    if not choices or not isinstance(choices[0], dict):
        raise MalformedAnswerError("its list of choices is empty")
    return choices[0]


def _calls(calls: Any) -> str:
    try:
        return hermes.format_calls([_call(call["function"]) for call in calls])
    except (TypeError, KeyError) as error:
        raise MalformedAnswerError(f"a call of a tool is none: {error}") from None


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments read from JSON; a model may have written something else, which is kept as it is."""
    arguments = function["arguments"]
    with suppress(ValueError, RecursionError):
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"name": function["name"], "arguments": arguments}


def _call_as_written(call: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or default_id,
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }


def _with_reasoning(reasoning: str, text: str, cut_off: bool) -> str:
    """Reasoning and what follows it; reasoning that was cut off has no end, as the model wrote none."""
    return f"<think>\n{reasoning}" if cut_off else f"<think>\n{reasoning}\n</think>\n\n{text}"


def _without_lone_surrogates(text: str) -> str:
    """JSON can hold halves of characters, where a server cut one in two; no file can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

"""Conversion of messages and tools to OpenAI's chat API, and of its responses to text."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from swiftplug.builtin.tools.formats import hermes
from swiftplug.plugin import Completion, UserError

CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length", "content_filter")
"""Values of `finish_reason`, in small letters, of an answer that ends too early."""
_BROKEN_OFF = ("error", "abort", "aborted", "cancelled")
_NOT_RETRIED = ("400", "401", "403", "404", "413", "422", "context_length_exceeded", "invalid_request_error")
_THOUGHT_KEYS = ("thinking", "reasoning", "text", "summary", "content")  # of a part of reasoning


class MalformedAnswerError(Exception):
    """A response does not have the expected form; the message explains why."""


class ReportedError(MalformedAnswerError):
    """A response with status 200 reports an error in place of an answer, or in the middle of one."""

    def __init__(self, error: Any) -> None:
        details = error if isinstance(error, dict) else {"message": error}
        text = details.get("message") or details
        super().__init__(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
        self.can_retry = not {str(details.get("code")), str(details.get("type"))} & {*_NOT_RETRIED}


def read_answer(body: str) -> Completion:
    """Read the answer from the body of a response of `POST /chat/completions`.

    Content may be a text or a list of parts. Reasoning becomes a `<think>` block, wherever the server has it: in
    `reasoning_content` (DeepSeek, SGLang, vLLM), `reasoning` (newer vLLM), `thinking` (Ollama), `thinking_blocks`
    (LiteLLM), `reasoning_details` (OpenRouter), parts of the content (Mistral), or in the content after a `<think>`
    that was part of the prompt. Where several have it, they repeat each other. Tool calls follow in the format
    `hermes`.

    Raises:
        MalformedAnswerError: It is no answer, or holds something that is not text.
        ReportedError: It is an error that the server reports.
    """
    try:
        answer = json.loads(body)
        if isinstance(answer, dict) and answer.get("error"):
            raise ReportedError(answer["error"])
        choice = answer["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        finish_reason = reason if isinstance(reason, str) and reason else "unknown"
        if choice.get("error") or finish_reason.lower() in _BROKEN_OFF:
            raise ReportedError(choice.get("error") or f"the answer broke off (finish_reason {finish_reason!r})")
        content, thoughts = _read_content(message.get("content"))
        content = content or message.get("refusal") or content
        if not isinstance(content or "", str):
            raise MalformedAnswerError("the refusal is not a text")
        places = ("reasoning_content", "reasoning", "thinking", "thinking_blocks", "reasoning_details")
        reasoning = next(filter(None, [thoughts, *(_read_thoughts(message.get(place)) for place in places)]), "")
        functions = [call["function"] for call in message.get("tool_calls") or []]
        if not functions and message.get("function_call"):  # the older form, of one call
            functions = [message["function_call"]]
        calls = hermes.format_calls([_read_call(function) for function in functions])
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
        raise MalformedAnswerError(f"expected a chat completion, found {body}") from None
    # An answer without content needs calls or reasoning, unless the server cut the model off before its first word.
    is_cut_off = finish_reason.lower() in CUT_OFF
    if content is None and not calls and not reasoning and not is_cut_off:
        raise MalformedAnswerError(f"the message has no content (finish_reason {finish_reason!r})")
    text = "\n".join(part for part in (content, calls) if part)
    closed = text.find("</think>")
    if closed >= 0 and "<think>" not in text[:closed]:  # the tag that opens it was part of the prompt
        is_repeated = reasoning and text[:closed].strip() in ("", reasoning.strip())
        text = text[closed + len("</think>") :] if is_repeated else "<think>\n" + text.lstrip("\n")
    if reasoning and not text.lstrip().startswith("<think>"):
        reasoning = reasoning.strip("\n").removeprefix("<think>").removesuffix("</think>").strip("\n")
        text = f"<think>\n{reasoning}" + ("" if is_cut_off and not text else "\n</think>\n\n" + text.lstrip("\n"))
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
    """Tools in the form of the API, from OpenAI-style or bare descriptions of functions; a string is parsed as JSON.

    Raises:
        UserError: A tool is not described by an object.
    """
    converted = []
    for tool in tools:
        described = tool
        if isinstance(tool, str):
            with suppress(ValueError, RecursionError):
                described = json.loads(tool)
        if not isinstance(described, dict):
            raise UserError(
                f"the tool {tool!r:.60} is not described by an object, as the server expects; describe it by one, or "
                "use --tools hermes or another tools format, which writes it as text"
            )
        converted.append(described if "function" in described else {"type": "function", "function": described})
    return converted


def plain_text(content: Any) -> str:
    """The content of a message, which may be a list of parts, as one text."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content or [])


def _read_content(content: Any) -> tuple[str | None, str]:
    """The text of a message's content, None if there is none, and the reasoning that is among its parts."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise MalformedAnswerError("the content is not a text")
    texts, thoughts = [], ""
    for part in content:
        fields = {"text": part} if isinstance(part, str) else dict(part)
        kind = str(fields.get("type", "text"))
        if "thinking" in kind or "reasoning" in kind:
            thoughts += _read_thoughts(fields)
        elif isinstance(text := fields.get("text", fields.get("refusal")), str):
            texts.append(text)
        else:
            raise MalformedAnswerError(f"the content has a part of type {kind!r}, which is no text")
    return "".join(texts) if texts else None, thoughts


def _read_thoughts(value: Any) -> str:
    """The text of reasoning: of a text, of a part, or of a list of them; encrypted reasoning has none."""
    if isinstance(value, list):
        return "".join(map(_read_thoughts, value))
    if isinstance(value, dict):
        return next(filter(None, (_read_thoughts(value.get(key)) for key in _THOUGHT_KEYS)), "")
    if not isinstance(value or "", str):
        raise MalformedAnswerError("the reasoning is not a text")
    return value or ""


def _read_call(function: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments parsed as JSON, or unchanged if the model wrote something else."""
    arguments = function.get("arguments") or {}  # null, or an empty text, if the function takes none
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

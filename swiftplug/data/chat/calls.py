"""The calls in what a model wrote, found by how the run writes a call: by a tools format or by the chat template."""

import json
import re
from collections.abc import Sequence
from typing import Any

from swiftplug.data.chat.render import ChatRenderer
from swiftplug.data.chat.tools import tool_name
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.data.read.messages import Messages

_NAME, _ARGUMENTS = "name_of_the_tool", {"name_of_the_argument": "value"}


class CallReader:
    """Reads the calls of tools in answers.

    Args:
        renderer: Writes calls as the run does.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer = renderer
        self._patterns: dict[str, re.Pattern[str] | None] = {}  # by tools

    def read(self, answer: str, tools: Sequence[Any]) -> list[dict[str, Any]]:
        """The calls in an answer, as `tool_calls` of a message; none if calls are not written as name and JSON.

        Args:
            answer: The text of an answer.
            tools: Descriptions of the tools that may be called.
        """
        key = json.dumps(tools, default=str)
        if key not in self._patterns:
            self._patterns[key] = self._pattern(tools)
        calls, pattern, place = [], self._patterns[key], 0
        while pattern and (found := pattern.search(answer, place)):
            place = found.end()
            try:
                arguments, place = json.JSONDecoder(strict=False).raw_decode(answer, place)
            except ValueError:
                continue
            if isinstance(arguments, dict):
                calls.append({"type": "function", "function": {"name": found[1], "arguments": arguments}})
        return calls

    def _pattern(self, tools: Sequence[Any]) -> re.Pattern[str] | None:
        """What is before the arguments of a call, with its name; None if it cannot be told."""
        call = {"type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
        messages: Messages = [
            {"role": "user", "content": "Question"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            written = self._renderer.render(Conversation(messages, RowOrigin("", 0), [*tools])).last_answer
        except RowError:
            return None
        before, _, rest = written.partition(_NAME)
        between, arguments, _ = rest.partition(json.dumps(_ARGUMENTS))
        if not arguments:
            return None
        names = "|".join(sorted((re.escape(tool_name(tool)) for tool in tools), key=len, reverse=True))
        return re.compile(f"{_loose(before.lstrip())}({names}){_loose(between)}")


def _loose(text: str) -> str:
    """A pattern of a text, in which white space between signs may be missing, and be any."""
    return re.sub(r"(?:\\?\s)+", r"\\s*", re.escape(text))

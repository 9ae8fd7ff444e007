"""The tools format of GLM-4."""

from collections.abc import Mapping, Sequence
from typing import Any

from swiftplug.builtin.tools.text import as_text


class GLM4:
    """An introduction of the assistant, then each tool under a heading of its own."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each: a string, or an object to be written as JSON.

        Returns:
            The text of the prompt; it ends in a blank line, as the description of every tool does.
        """
        tools = "".join(f"## {name}\n\n{as_text(desc)}\n\n" for name, desc in zip(tool_names, tool_descs, strict=True))
        return (
            "You are an AI assistant named ChatGLM. You are developed based on the GLM-4 model trained by Zhiyupo AI. "
            "Your task is to provide appropriate responses and support based on user questions and requests.\n\n"
            f"# Available Tools\n\n{tools}"
        )

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The name of each call on a line, its arguments as JSON on the next."""
        return "\n".join(f"{call['name']}\n{as_text(call['arguments'])}" for call in calls)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """The results as they are, a line break between them."""
        return "\n".join(str(result["content"]) for result in results)


glm4 = GLM4()

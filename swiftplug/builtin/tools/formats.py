"""Tools formats: how a prompt describes the tools, and how tool calls and results are written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swiftplug.plugin import AgentKeyword, as_text


def template(tool_names: list[str], tool_descs: list[Any]) -> None:
    """The chat template's own: it writes the tools, their calls and their results."""


class Hermes:
    """Hermes 2 Pro, also used by Qwen: JSON in `<tools>`, `<tool_call>` and `<tool_response>` tags."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """List the tools, one JSON object per line; see `ToolsFormat.__call__`.

        A description in plain text becomes an object with the tool's `name` and this `description`.
        """
        signatures = "\n".join(_json_line(name, desc) for name, desc in zip(tool_names, tool_descs, strict=True))
        return f"""\
You can call functions to help the user. Here are their signatures, one JSON object a line:
<tools>
{signatures}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>, for each \
call anew:
<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>

What a call returned is then given to you between <tool_response> and </tool_response>."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """A JSON object between tags for each call."""
        objects = ({"name": call["name"], "arguments": call["arguments"]} for call in calls)
        return "\n".join(f"<tool_call>\n{as_text(call)}\n</tool_call>" for call in objects)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """A text between tags for each result."""
        return "\n".join(f"<tool_response>\n{result['content']}\n</tool_response>" for result in results)


class GLM4:
    """GLM-4: a heading for each tool; a call is the tool's name, then its arguments as JSON on the next line."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """List the tools, each followed by a blank line; see `ToolsFormat.__call__`."""
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
        """The results as they are, one after the other."""
        return "\n".join(str(result["content"]) for result in results)


class _PromptWithActions(AgentKeyword):
    """A format with `Action:`, `Action Input:` and `Observation:` lines, and a prompt that lists the tools.

    Subclasses set `prompt`, with `{tools}` and perhaps `{names}` in it.
    """

    prompt: str

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """List the tools in the prompt; see `ToolsFormat.__call__`."""
        tools = "\n".join(f"{name}: {as_text(desc)}" for name, desc in zip(tool_names, tool_descs, strict=True))
        return self.prompt.format(tools=tools, names=", ".join(tool_names))


class ReActEnglish(_PromptWithActions):
    """ReAct (arXiv 2210.03629): `Thought:`, `Action:`, `Action Input:` and `Observation:`, with an English prompt."""

    prompt = """\
Solve the user's task as well as you can. These tools are at your disposal:

{tools}

Write in this form:

Thought: what is known, and what has to be done next
Action: the tool to use, one of [{names}]
Action Input: the arguments for the tool, as a JSON object
Observation: what the tool returned
... (Thought, Action, Action Input and Observation are repeated as often as needed)
Thought: now I know the final answer
Final Answer: the final answer to the task"""


class ReActChinese(_PromptWithActions):
    """ReAct (arXiv 2210.03629) with a Chinese prompt; the keywords are the English ones."""

    prompt = """\
请尽力完成用户的任务。你可以使用以下工具：

{tools}

请按照以下格式书写：

Thought: 已知的情况，以及下一步要做什么
Action: 要使用的工具，必须是 [{names}] 之一
Action Input: 传给工具的参数，写成 JSON 对象
Observation: 工具返回的结果
...（Thought、Action、Action Input 和 Observation 可按需要重复多次）
Thought: 现在我知道最终答案了
Final Answer: 任务的最终答案"""


class ToolBench(_PromptWithActions):
    """ToolBench (arXiv 2307.16789): like ReAct, with an action at every step and `Finish` as the last."""

    prompt = """\
Your task is to carry out what the user asks by calling APIs, one call at a time. Each step is written in this form:

Thought: what the results so far mean, and what to do next
Action: the API to call
Action Input: the arguments of the call, as a JSON object

You are then shown what the call returned, and take the next step. If a plan does not work out, try another.

The last step always calls the function `Finish`, either with the final answer:

Action: Finish
Action Input: {{"return_type": "give_answer", "final_answer": "all that the user should read"}}

or, if the APIs cannot do the task, to give it up:

Action: Finish
Action Input: {{"return_type": "give_up_and_restart"}}

These are the APIs:

{tools}"""


hermes = Hermes()
glm4 = GLM4()
react_en = ReActEnglish()
react_zh = ReActChinese()
toolbench = ToolBench()


def _json_line(name: str, desc: Any) -> str:
    """The description of a tool as one line that holds a JSON object."""
    if not isinstance(desc, str):
        return as_text(desc)
    try:
        parsed = json.loads(desc)
    except json.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        return as_text({"name": name, "description": desc})
    return as_text(parsed) if "\n" in desc else desc

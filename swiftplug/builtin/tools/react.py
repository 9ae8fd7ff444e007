"""ReAct (arXiv 2210.03629): thoughts, actions and observations in turn, in English and in Chinese."""

from collections.abc import Mapping, Sequence
from typing import Any

from swiftplug.builtin.tools.text import as_text, named_list


class ActionTurns:
    """Writes a call as `Action:` and `Action Input:` lines, and a result behind `Observation:`."""

    def format_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The two lines of each call, the arguments as JSON."""
        return "\n".join(f"Action: {call['name']}\nAction Input: {as_text(call['arguments'])}" for call in calls)

    def format_results(self, results: Sequence[Mapping[str, Any]]) -> str:
        """One observation a result."""
        return "\n".join(f"Observation: {result['content']}" for result in results)


class ReActEnglish(ActionTurns):
    """The tools, then the protocol, in English."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each: a string, or an object to be written as JSON.

        Returns:
            The text of the prompt.
        """
        return f"""\
Solve the user's task as well as you can. These tools are at your disposal:

{named_list(tool_names, tool_descs)}

Write in this form:

Thought: what is known, and what has to be done next
Action: the tool to use, one of [{", ".join(tool_names)}]
Action Input: the arguments for the tool, as a JSON object
Observation: what the tool returned
... (Thought, Action, Action Input and Observation are repeated as often as needed)
Thought: now I know the final answer
Final Answer: the final answer to the task"""


class ReActChinese(ActionTurns):
    """The tools, then the protocol, in Chinese; the keywords are those of the English form."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """Describe the tools.

        Args:
            tool_names: The name of each tool.
            tool_descs: The description of each: a string, or an object to be written as JSON.

        Returns:
            The text of the prompt.
        """
        return f"""\
请尽力完成用户的任务。你可以使用以下工具：

{named_list(tool_names, tool_descs)}

请按照以下格式书写：

Thought: 已知的情况，以及下一步要做什么
Action: 要使用的工具，必须是 [{", ".join(tool_names)}] 之一
Action Input: 传给工具的参数，写成 JSON 对象
Observation: 工具返回的结果
...（Thought、Action、Action Input 和 Observation 可按需要重复多次）
Thought: 现在我知道最终答案了
Final Answer: 任务的最终答案"""


react_en = ReActEnglish()
react_zh = ReActChinese()

"""ToolBench (arXiv 2307.16789): an action at every step, and a function that ends the task."""

from typing import Any

from swiftplug.builtin.tools.react import ActionTurns
from swiftplug.builtin.tools.text import named_list


class ToolBench(ActionTurns):
    """The task, the protocol that ends in a call of `Finish`, then the APIs."""

    def __call__(self, tool_names: list[str], tool_descs: list[Any]) -> str:
        """Describe the tools.

        Args:
            tool_names: The name of each API.
            tool_descs: The description of each: a string, or an object to be written as JSON.

        Returns:
            The text of the prompt.
        """
        return f"""\
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

{named_list(tool_names, tool_descs)}"""


toolbench = ToolBench()

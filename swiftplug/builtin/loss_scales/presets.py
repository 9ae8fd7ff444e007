"""Named loss scales: which contexts are trained, and the weights of papers on agents and reasoning."""

from typing import Any

from swiftplug.builtin.loss_scales.keywords import TableLossScale, Weight, WeightTable
from swiftplug.plugin import ContextType, LossScale


class Default(LossScale):
    """Trains all responses: they and their suffixes weigh 1, everything else 0."""


class LastRound(LossScale):
    """Trains only the responses of the last round: they and their suffixes weigh 1, everything else 0."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """The whole context: as the base class weighs it in the last round, else 0."""
        _, weights = super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        return [context], weights if is_last_round else [0.0]


class All(LossScale):
    """Trains all tokens, also those of prompts: everything weighs 1."""

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """The whole context with weight 1."""
        return [context], [1.0]


_REACT: dict[str, Weight] = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}


class React(TableLossScale):
    """ReAct: actions weigh 2 and observations 0, as in ModelScope-Agent (arXiv 2309.00986)."""

    table = WeightTable(_REACT)


class AlphaUmi(TableLossScale):
    """α-UMi (arXiv 2401.07324): like `react`, and `Next:`, which hands over to another model, weighs 2."""

    table = WeightTable({**_REACT, "Next:": (2.0, 2.0)})


class AgentFlan(TableLossScale):
    """Agent-FLAN (arXiv 2403.12881): tool names and arguments weigh 3, and so do answers to questions about them."""

    table = WeightTable(
        {
            "Name:": (1.0, 3.0),
            "Action:": (1.0, 3.0),
            "ACTION:": (1.0, 3.0),
            "Tool:": (1.0, 3.0),
            "Command": (1.0, 3.0),
            "Arguments:": (1.0, 3.0),
            "action input": (1.0, 3.0),
            "ACTION_INPUT:": (1.0, 3.0),
            "Action Input:": (1.0, 3.0),
            "Thought:": (1.0, 1.0),
            "Final Answer:": (1.0, 1.0),
            "Observation:": (2.0, 0.0),
        }
    )
    questions = (
        "What is the tool you want to use",
        "What are the required parameter names",
        "What is the value of",
    )

    def get_loss_scale(
        self, context: str, context_type: ContextType, is_last_round: bool, *, query: str = "", **kwargs: Any
    ) -> tuple[list[str], list[float]]:
        """Split a response by the table, unless the round's query asks for a tool or its arguments."""
        if context_type is ContextType.RESPONSE and any(question in query for question in self.questions):
            return [context], [3.0]
        return super().get_loss_scale(context, context_type, is_last_round, **kwargs)


class Hermes(TableLossScale):
    """Hermes tool calls weigh 2, their `<tool_call>` tags included."""

    table = WeightTable(patterns={r"(?s)<tool_call>.+?</tool_call>": 2.0})


class Qwen(TableLossScale):
    """Qwen 2 tool calls (`✿FUNCTION✿:`, `✿ARGS✿:`) weigh 2, and tool results 0."""

    table = WeightTable(
        {
            "✿FUNCTION✿:": (2.0, 2.0),
            "✿ARGS✿:": (2.0, 2.0),
            "✿RETURN✿:": (1.0, 1.0),
            "✿RESULT✿:": (2.0, 0.0),
        }
    )


class IgnoreEmptyThink(TableLossScale):
    """An empty thinking block at the start of an answer weighs 0, with the white space after it."""

    table = WeightTable(patterns={r"^<think>\s*</think>\s*": 0.0})


class IgnoreThinkPrefix(TableLossScale):
    """The opening `<think>` at the start of an answer weighs 0, with the line break after it."""

    table = WeightTable(patterns={r"^<think>\n?": 0.0})

"""Loss scales for agents: what calls a tool weighs more, what a tool returned weighs nothing."""

from typing import Any

from swiftplug.builtin.loss_scales.table import TableLossScale, Weight, WeightTable
from swiftplug.plugin.loss_scale import ContextType

_REACT: dict[str, Weight] = {
    "Action:": (2.0, 2.0),
    "Action Input:": (2.0, 2.0),
    "Thought:": (1.0, 1.0),
    "Final Answer:": (1.0, 1.0),
    "Observation:": (2.0, 0.0),
}


class React(TableLossScale):
    """Actions weigh 2 and observations nothing, as in ModelScope-Agent (arXiv 2309.00986)."""

    table = WeightTable(_REACT)


class AlphaUmi(TableLossScale):
    """As `react`, with α-UMi's `Next:`, which hands over to another model, weighing 2 (arXiv 2401.07324)."""

    table = WeightTable({**_REACT, "Next:": (2.0, 2.0)})


class AgentFlan(TableLossScale):
    """Agent-FLAN's weights (arXiv 2403.12881): tools and arguments weigh 3, and so do answers to questions of them."""

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
        """Cut a response by the table, unless the round's query asks for a tool or its arguments.

        Args:
            context: The text of the segment.
            context_type: What the segment is.
            is_last_round: Whether the segment belongs to the last round.
            query: The text of the round's query.
            **kwargs: Whatever later versions add.

        Returns:
            The parts and the weight of each.
        """
        if context_type is ContextType.RESPONSE and any(question in query for question in self.questions):
            return [context], [3.0]
        return super().get_loss_scale(context, context_type, is_last_round, **kwargs)


class Hermes(TableLossScale):
    """Tool calls in the form of Hermes weigh 2, with the marks around them."""

    table = WeightTable(patterns={r"(?s)<tool_call>.+?</tool_call>": 2.0})


class Qwen(TableLossScale):
    """Tool calls in the form of Qwen 2 weigh 2, and what the tool returned nothing."""

    table = WeightTable(
        {
            "✿FUNCTION✿:": (2.0, 2.0),
            "✿ARGS✿:": (2.0, 2.0),
            "✿RETURN✿:": (1.0, 1.0),
            "✿RESULT✿:": (2.0, 0.0),
        }
    )

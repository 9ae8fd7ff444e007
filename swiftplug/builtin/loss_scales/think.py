"""Loss scales that do not train on thinking marks that the prompt or the user puts there."""

from swiftplug.builtin.loss_scales.table import TableLossScale, WeightTable


class IgnoreEmptyThink(TableLossScale):
    """An empty thinking block at the answer's start weighs 0, with the white space behind it."""

    table = WeightTable(patterns={r"^<think>\s*</think>\s*": 0.0})


class IgnoreThinkPrefix(TableLossScale):
    """The opening `<think>` at the answer's start weighs 0, with the line break behind it."""

    table = WeightTable(patterns={r"^<think>\n?": 0.0})

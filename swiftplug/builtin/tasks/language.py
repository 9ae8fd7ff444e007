"""Tasks that a loss plugin computes: pretraining and supervised fine-tuning."""

from swiftplug.plugin import Rows, Task

_KINDS = frozenset({"loss", "loss_scale", "metric"})


class Pretraining(Task):
    """Trains all text: of plain text, and of conversations too."""

    rows = Rows.TEXT
    kinds = _KINDS
    weights = "any"


class SupervisedFineTuning(Task):
    """Trains the answers of conversations, or what a loss scale chooses of them."""

    rows = Rows.ANSWERS
    kinds = _KINDS
    weights = "any"

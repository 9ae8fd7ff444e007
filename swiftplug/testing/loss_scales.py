"""The contract of a loss scale."""

import inspect
from itertools import product

from swiftplug.errors import ContractError
from swiftplug.plugin import ContextType
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_weights
from swiftplug.testing.inputs import TEXTS, on

_QUERIES = ("What is 2 + 2?", "", "二加二等于几?👍")
_ROLES = ("assistant", "user", "system", "tool", "")


def check(plugin: LoadedPlugin) -> None:
    """Ask for the weights of texts of every sort, in every context."""
    weigh = plugin.bound.get_loss_scale
    parameters = inspect.signature(weigh).parameters
    takes_role = "role" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    trains = False
    for (name, text), kind, is_last in product(TEXTS.items(), ContextType, (True, False)):
        for index, query in enumerate(_QUERIES):
            role = {"role": _ROLES[index if kind is ContextType.OTHER else 0]} if takes_role else {}
            where = f"{name} as a {kind.value}, is_last_round={is_last}, query={query!r}"
            with on(where):
                answers = [check_weights(weigh(text, kind, is_last, query=query, **role), text, kind) for _ in range(2)]
            if answers[0] != answers[1]:
                raise ContractError(
                    f"gives {name} the weights {answers[0][1]} and then {answers[1][1]}; let them depend on the "
                    "arguments alone, since encoded rows are stored"
                )
            trains |= any(weight and part for part, weight in zip(*answers[0], strict=True))
    if not trains:
        raise ContractError(
            "gives every text the weight 0, so that nothing trains; give what is to be learned a weight above 0 "
            "(a ContextType is an enum: compare with ContextType.RESPONSE)"
        )

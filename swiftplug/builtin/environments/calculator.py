"""A calculator, which a model asks in the middle of its answer."""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import PositiveInt

from swiftplug.plugin import Environment, InferRequest, Message

_OPERATORS: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_LONGEST, _LARGEST = 200, 10.0**100
_EXPRESSION = re.compile(r"<calc>(.*?)</calc>", re.S)


class Calculator(Environment):
    """Answers `<calc>12 * 7</calc>`, or a call of the row's tool `calculator` with an `expression`, with the result.

    It knows numbers, brackets and `+ - * / // % **`. What it cannot compute is answered with the reason. A turn without
    an expression ends the episode, and so does one more turn after `max_turns` results. It gives no reward.

    Args:
        max_turns: How many turns of a candidate are answered, at most.
    """

    def __init__(self, max_turns: PositiveInt = 4) -> None:
        self.left: int = max_turns

    def reset(self, row: InferRequest) -> None:
        """Nothing is put behind the prompt: that may say what there is to ask."""

    def step(self, messages: Sequence[Message]) -> list[Message] | None:
        """Compute what the model's turn asks for; see `Environment.step`."""
        results = [{"role": "tool", "name": "calculator", "content": text} for text in _results(messages[-1])]
        if not results or not self.left:
            return None
        self.left -= 1
        return results


def _results(turn: Message) -> Iterator[str]:
    """The result of each expression, or why there is none."""
    for expression in _EXPRESSION.findall(turn["content"]):
        yield compute(expression)
    for call in turn.get("tool_calls", []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if name != "calculator":
            yield f"error: there is no tool {name}, only calculator"
        elif not isinstance(arguments.get("expression"), str):
            yield "error: calculator needs the argument expression, a text such as 12 * 7"
        else:
            yield compute(arguments["expression"])


def compute(expression: str) -> str:
    """The result of an expression with 12 digits (all of a whole number), or `error:` and the reason."""
    if len(expression) > _LONGEST:
        return f"error: the expression has {len(expression)} characters, more than {_LONGEST}"
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python, about what it can only just read
            tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, MemoryError, RecursionError):
        return "error: this is no expression"
    except (ArithmeticError, ValueError) as error:
        return f"error: {error}"
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _OPERATORS:
            value = _OPERATORS[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            first, second = _value(left), _value(right)
            # A power of whole numbers may take for ever.
            if isinstance(sign, ast.Pow) and abs(first) > 1 and abs(second) > 400:
                raise ValueError("the result is too large" if second > 0 else "the result is too small")
            value = _OPERATORS[type(sign)](first, second)
        case _:
            raise ValueError(f"{ast.unparse(node)!r:.40} is no number, and only + - * / // % ** compute")
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    if not abs(value) <= _LARGEST:
        raise ValueError("the result is too large")
    return value

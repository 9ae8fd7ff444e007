"""The environment `calculator`: what it computes, and what it answers to the rest."""

from typing import Any

import pytest

from swiftplug.builtin.environments.calculator import Calculator, compute
from swiftplug.plugin import InferRequest

QUESTION = {"role": "user", "content": "How many?"}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * 7", "84"),
        (" (1 + 2) * 3 - -4 ", "13"),
        ("2 ** 300", str(2**300)),
        ("7 // 2", "3"),
        ("-7 % 5", "3"),
        ("8 / 4", "2"),
        ("1 / 3", "0.333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 0.5", "1.41421356237"),
        ("1e3", "1000"),
        ("1 / 0", "error: division by zero"),
        ("9 ** 9 ** 9", "error: the result is too large"),
        ("2 ** -99999999999", "error: the result is too small"),
        ("1e300 * 1e300", "error: the result is too large"),
        ("1e999 - 1e999", "error: the result is too large"),
        ("(-8) ** 0.5", "error: the result is no real number"),
        ("9" * 300, "error: the expression has 300 characters, more than 200"),
        ("(" * 150, "error: this is no expression"),
        ("12 *", "error: this is no expression"),
        ("", "error: this is no expression"),
        ("1 or 2", "error: '1 or 2' is no number, and only + - * / // % ** compute"),
        ("2 ^ 3", "error: '2 ^ 3' is no number, and only + - * / // % ** compute"),
        ("True + 1", "error: 'True' is no number, and only + - * / // % ** compute"),
        ("'7' * 9", "error: \"'7'\" is no number, and only + - * / // % ** compute"),
        (
            "__import__('os').getcwd()",
            "error: \"__import__('os').getcwd()\" is no number, and only + - * / // % ** compute",
        ),
        ("apples", "error: 'apples' is no number, and only + - * / // % ** compute"),
        ("1\x002", "error: "),
    ],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.timeout(5)
def test_what_it_computes(expression: str, result: str) -> None:
    computed = compute(expression)
    assert computed.startswith(result) if result == "error: " else computed == result


def step(calculator: Calculator, content: str, *calls: tuple[str, Any]) -> list[str] | None:
    """The contents of what it answers to a turn."""
    functions = [{"type": "function", "function": {"name": name, "arguments": each}} for name, each in calls]
    turn = {"role": "assistant", "content": content, **({"tool_calls": functions} if calls else {})}
    replies = calculator.step([QUESTION, turn])
    assert replies is None or all((it["role"], it["name"]) == ("tool", "calculator") for it in replies)
    return None if replies is None else [it["content"] for it in replies]


def begun(**options: Any) -> Calculator:
    calculator = Calculator(**options)
    assert calculator.reset(InferRequest([QUESTION])) is None
    return calculator


def test_each_expression_of_a_turn_is_answered_and_one_without_ends_the_episode() -> None:
    calculator = begun()
    assert step(calculator, "First <calc>3 + 5</calc>, then <calc>8\n- 1</calc>") == [
        "8",
        "error: this is no expression",
    ]
    assert step(calculator, "<calc>8 - 1</calc>") == ["7"]
    assert step(calculator, "It is <calc>7.") is None
    assert calculator.reward() is None


def test_calls_of_the_tool_are_answered_too() -> None:
    calls = [("calculator", {"expression": "6 * 7"}), ("search", {"q": "x"}), ("calculator", {"a": 1})]
    assert step(begun(), "I ask.", *calls) == [
        "42",
        "error: there is no tool search, only calculator",
        "error: calculator needs the argument expression, a text such as 12 * 7",
    ]


def test_so_many_turns_are_answered() -> None:
    calculator = begun(max_turns=2)
    assert [step(calculator, "<calc>1 + 1</calc>") for _ in range(3)] == [["2"], ["2"], None]

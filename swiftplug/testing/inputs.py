"""A plugin with its options, input that real data has sooner or later, and how a fault on it is described."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import FoundPlugin, LoadedPlugin
from swiftplug.plugin.registry.contracts import check_contract
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.errors import describe_error

TEXTS = {
    "an empty text": "",
    "white space": " \n\t\n",
    "a number": "4",
    "steps": "Step 1: 2 + 2 = 4\nStep 2: 4 - 1 = 3\n\\boxed{3}",
    "a call of a tool": 'Thought: I add.\nAction: add\nAction Input: {"a": 2, "b": 2}\nObservation: 4\nFinal Answer: 4',
    "an empty thought": "<think>\n\n</think>\n\n4",
    "a tag that is not closed": '<think>\nLet me see: <tool_call>{"name": ',
    "a tag that was not opened": "4</think></tool_call><|im_end|>",
    "Chinese": "思考:二加二等于四。\n所以答案是四。",
    "emoji": "👍🏽 4 👨‍👩‍👧‍👦 é",
    "the signs of a pattern": "a+b(c[d{e\\f*g?h|i^j$k.l",
    "JSON": '{"answer": "4", "steps": []}',
    "Windows line breaks": "It is\r\n4.\r\n",
    "a long text": "So 2 + 2 = 4, and then again. " * 400,
}
"""Answers, and other texts, by what messages call them."""


class RaisedError(ContractError):
    """A plugin raised an exception."""


class OverdueError(BaseException):
    """Interrupts a check that takes too long. It is no Exception, which a plugin may catch to try again."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise an OverdueError in a block that takes longer: in the main thread, unless another timer ends it sooner."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    began, (left, interval) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)  # that of pytest-timeout, say
    if 0 < left <= seconds:
        yield
        return

    def interrupt(_: int, frame: FrameType | None) -> None:
        place = f", at {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        raise OverdueError(f"has not ended after {seconds:g} s{place}")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001), interval)


@contextmanager
def on(what: str) -> Iterator[None]:
    """Say on what input a plugin raised an exception, or otherwise broke its contract.

    Raises:
        RaisedError: It raised one that is no UserError, which a plugin may raise to refuse a run.
        ContractError: It broke its contract otherwise.
    """
    try:
        yield
    except UserError:
        raise
    except ContractError as error:
        raise ContractError(f"{error} (for {what})") from error
    except OverdueError as error:
        raise OverdueError(f"{error} (for {what})") from error
    except (Exception, SystemExit) as error:
        raise RaisedError(f"raised {describe_error(error)} for {what}") from error


def number(value: Any) -> str:
    """A number in a message."""
    return f"{float(value):.6g}"


def load(found: FoundPlugin, options: Mapping[str, Any]) -> LoadedPlugin:
    """Import a plugin, check its shape, and give it its options.

    Raises:
        ContractError: It does not fit its contract.
        UserError: It refuses its options, or needs another.
    """
    from swiftplug.plugin.registry.options import bind, check_options  # they need pydantic

    plugin = found.load()
    check_contract(found.kind, plugin)
    declared = declared_options(found.kind, plugin)
    if missing := [name for name, each in declared.named.items() if each.default is each.empty and name not in options]:
        raise UserError(f"needs the option {missing[0]!r}: check_plugin({found.kind!r}, ..., {missing[0]}=...)")
    checked = check_options(options, declared)
    if further := getattr(plugin, "check_options", None):
        further(**checked)
    return LoadedPlugin(found, checked, bind(found.kind, found.name, plugin, checked), None, "")

"""The PRM that checks the calculations of an answer, step by step."""

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from swiftplug.builtin.numbers import plain_numbers
from swiftplug.builtin.prms.equations import check_equations
from swiftplug.plugin import PRM, InferRequest

NO_STEP = 0.0
"""The reward of an answer without an equation: it shows no calculation that could be right."""

_STEP = re.compile(r"^[ \t#>-]*Step[ \t]*\d+[ \t]*[:：.)–-]?", re.MULTILINE | re.IGNORECASE)


class Arithmetic(PRM):
    """Rewards each step of an answer that has an equation: 1.0 if all its equations hold, else 0.0.

    A step reaches from one `Step k:` at the start of a line to the next; in an answer without these, each line is a
    step. Equations are `a + b = c` with the usual signs, chains of them, and the calculator annotations of GSM8K
    (arXiv 2110.14168), `<<48/2=24>>`. A result may be rounded or cut off to the digits that it is written with, if it
    has decimals or a percent sign, or follows `≈`.

    A step without an equation that is certain to be understood gets no reward. An answer with no other steps gets the
    single reward 0.0. Whether a calculation is the one that the question asks for is not checked.

    Example:
        >>> answer = "Step 1: 48 / 2 = 24\\nStep 2: so there are more of them\\nStep 3: 48 + 24 = 62"
        >>> Arithmetic()([InferRequest([{"role": "assistant", "content": answer}])])
        [[1.0, 0.0]]
    """

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float]]:
        """See `PRM.__call__`. References are ignored."""
        return [step_rewards(request.messages[-1]["content"]) or NO_STEP for request in infer_requests]

    def step_ends(self, text: str) -> list[int]:
        """See `PRM.step_ends`; white space is behind the ends."""
        lines = text.splitlines(keepends=True)
        return [len("".join(lines[:count]).rstrip()) for _, count in _steps(text)]


def step_rewards(answer: str) -> list[float]:
    """The reward of each step that has an equation."""
    return [reward for reward, _ in _steps(answer)]


def _steps(answer: str) -> Iterator[tuple[float, int]]:
    """The reward of each step that has an equation, and how many lines of the answer there are up to its end."""
    answer = normalize(answer)
    steps = _STEP.split(answer)
    if len(steps) == 1:
        ends: Iterable[tuple[str, int]] = zip(answer.splitlines(), itertools.count(1))
    else:
        lines = [0, *itertools.accumulate(map(len, answer.splitlines(keepends=True)))][:-1]  # where they begin
        headers = [header.start() for header in _STEP.finditer(answer)]
        ends = zip(steps, (bisect_left(lines, end) for end in [*headers, len(answer)]), strict=True)
    for step, count in ends:
        if holds := list(check_equations(step)):
            yield float(all(holds)), count


_SIGNS = str.maketrans("×✕⋅∙÷≅≃{}[]", "****/≈≈()()") | dict.fromkeys(map(ord, "$€£¥￥₹"), " ")
_LATEX_SIGNS = {"times": "*", "cdot": "*", "div": "/", "approx": "≈", "dfrac": r"\frac", "tfrac": r"\frac"}
_LATEX = re.compile(r"\\(times|cdot|div|approx|dfrac|tfrac|left|right|boxed)(?![a-zA-Z])|\\[,;! $]|\\(?=%)")
_FRACTION = re.compile(r"((?<![\d.])\d+)?\\frac\{([^{}]*)\}\{([^{}]*)\}")
_LIST_MARKER = re.compile(r"^[ \t]*(?:[-*•·]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_TIMES = re.compile(r"(?<=[\d)%])[ \t]*[xX·][ \t]*(?=[\d(.])")
_POWER_OR_BOLD = re.compile(r"(?P<power>(?<=[\d)])\*\*(?=[\d(]))|\*\*")
_ARROW = re.compile(r"[-=]{1,3}>")
_TIME_OF_DAY = re.compile(r"(?<!\d)\d+(?::\d+)+")
_PER = re.compile(r"/[ \t]*(?=[^\W\d_])")


def _divided(fraction: re.Match[str]) -> str:
    """A fraction of LaTeX as a division; behind a whole number, a proper one is the rest of a mixed number."""
    whole, over, under = fraction.groups()
    is_proper = over.isdigit() and under.isdigit() and (len(over), over) < (len(under), under)
    return f"({whole}+{over}/{under})" if whole and is_proper else f"{whole or ''}(({over})/({under}))"


def normalize(text: str) -> str:
    r"""A text with one sign for each operation, and without markers of lists and bold type; its lines are kept.

    Multiplication is `*`, division `/`, a power `^`, approximate equality `≈`; all parentheses are round. Currency
    signs are removed, and so is what has such signs but calculates nothing: times of day, arrows, `miles / hour`.

    Example:
        >>> normalize(r"- **Total:** 3 × 4 = \frac{24}{2}")
        'Total: 3 * 4 = ((24)/(2))'
    """
    text = plain_numbers(text)
    if "\\" in text:
        text = _LATEX.sub(lambda command: _LATEX_SIGNS.get(command[1] or "", ""), text)
        text = _FRACTION.sub(_divided, text)
    text = _LIST_MARKER.sub("", text).translate(_SIGNS)
    text = _POWER_OR_BOLD.sub(lambda stars: "^" if stars["power"] else "", _TIMES.sub("*", text))
    return _PER.sub(" per ", _TIME_OF_DAY.sub("time", _ARROW.sub(";", text)))

"""Does every step of an answer calculate correctly?"""

import re
from typing import Any

from swiftplug.builtin.prms.equations import verdicts
from swiftplug.builtin.prms.signs import plain
from swiftplug.plugin.rewards import PRM, InferRequest

NO_STEP = 0.0
"""The reward of an answer without an equation: it shows no calculation that could be right."""

_STEP = re.compile(r"^[ \t#>-]*Step[ \t]*\d+[ \t]*[:：.)–-]?", re.MULTILINE | re.IGNORECASE)


class Arithmetic(PRM):
    """One reward a step that has an equation: 1.0 if all its equations hold, else 0.0.

    A step goes from one `Step k:` at the beginning of a line to the next; in an answer without these each line is one.
    Equations are `a + b = c` with the usual signs, chains of them, and the calculator annotations of GSM8K
    (arXiv 2110.14168), `<<48/2=24>>`; `swiftplug.builtin.prms.equations` says what is read, and what rounding is right.
    A step without an equation that can be read is left out: nothing can be said of it. An answer with no other gets the
    single reward 0.0.

    Whether a calculation is the one that the question asks for is not seen here.

    Example:
        >>> answer = "Step 1: 48 / 2 = 24\\nStep 2: so there are more of them\\nStep 3: 48 + 24 = 62"
        >>> Arithmetic()([InferRequest([{"role": "assistant", "content": answer}])])
        [[1.0, 0.0]]
    """

    def __call__(self, infer_requests: list[InferRequest], **kwargs: Any) -> list[float | list[float]]:
        """See `PRM.__call__`. References play no part."""
        return [rewards(request.messages[-1]["content"]) or NO_STEP for request in infer_requests]


def rewards(answer: str) -> list[float]:
    """The reward of each step that has an equation."""
    answer = plain(answer)
    steps = _STEP.split(answer)
    if len(steps) == 1:
        steps = answer.splitlines()
    checked = [list(verdicts(step)) for step in steps]
    return [float(all(equations)) for equations in checked if equations]

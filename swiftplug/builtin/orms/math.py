r"""Is the last `\boxed{...}` the right one, as text?"""

from swiftplug.builtin.boxed import last_boxed
from swiftplug.builtin.orms.compared import Compared


class Math(Compared):
    r"""1.0 if the content of the answer's last `\boxed{...}` is that of the reference's last one, else 0.0.

    They are compared as text, white space around them aside: `1/2` is not `0.5` (`math_verify` knows that it is). A
    reference without a box is taken whole. An answer without a box scores 0.0.

    Example:
        >>> Math().score(r"Half of it is \boxed{\frac{1}{2}}.", r"\boxed{ \frac{1}{2} }")
        1.0
    """

    def score(self, answer: str, reference: str) -> float:
        """1.0 for the right box, else 0.0."""
        found, expected = last_boxed(answer), last_boxed(reference)
        if expected is None:
            expected = reference
        return float(found is not None and found.strip() == expected.strip())

    def answer_of(self, text: str) -> str | None:
        """The content of the last box."""
        return (last_boxed(text) or "").strip() or None

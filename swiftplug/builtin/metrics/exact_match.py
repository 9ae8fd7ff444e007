r"""The share of generated answers that match the reference exactly."""

from pydantic import PositiveInt

from swiftplug.builtin.boxed import last_boxed, without_reasoning


class ExactMatch:
    r"""Share of generated answers that match the reference: its last `\boxed{...}`, or else the whole text.

    Where a reference has a `\boxed{...}`, the content of its last one is compared with that of the answer's last one;
    otherwise the whole texts are compared. A box in `<think>...</think>` does not count, surrounding white space is
    ignored.

    Example:
        >>> ExactMatch()(["Step 1: 1 + 1 = 2\n\\boxed{2}", "I do not know."], ["\\boxed{2}", "\\boxed{3}"])
        {'exact_match': 0.5}
    """

    generate = True

    def __init__(self, max_new_tokens: PositiveInt = 256) -> None:
        """Set the length of answers.

        Args:
            max_new_tokens: Maximum length of a generated answer, in tokens.
        """
        self.max_new_tokens = max_new_tokens

    def __call__(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """The share of matches, `exact_match`, from 0 to 1; NaN if there is nothing to compare."""
        correct = [_matches(answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        return {"exact_match": sum(correct) / len(correct) if correct else float("nan")}


def _matches(answer: str, reference: str) -> bool:
    found, expected = (last_boxed(without_reasoning(text)) for text in (answer, reference))
    if expected is None:
        found, expected = answer, reference
    return found is not None and found.strip() == expected.strip()

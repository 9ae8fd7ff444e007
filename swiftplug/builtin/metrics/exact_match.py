r"""The share of generated answers that match the reference exactly."""

from pydantic import PositiveInt

from swiftplug.builtin.boxed import last_boxed


class ExactMatch:
    r"""Share of generated answers that match the reference: its last `\boxed{...}`, or else the whole text.

    Where a reference has a `\boxed{...}`, the content of its last one is compared with that of the answer's last one;
    otherwise the whole texts are compared. Surrounding white space is ignored.

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
    expected = last_boxed(reference)
    if expected is None:
        return answer.strip() == reference.strip()
    found = last_boxed(answer)
    return found is not None and found.strip() == expected.strip()

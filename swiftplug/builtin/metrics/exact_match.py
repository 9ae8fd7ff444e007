r"""The share of generated answers that are exactly right: the last `\boxed{...}`, else the whole text."""

from pydantic import PositiveInt

from swiftplug.builtin.boxed import last_boxed


class ExactMatch:
    r"""Compares generated answers with the references.

    Where a reference has a `\boxed{...}`, the content of its last one is compared with that of the answer's last one;
    otherwise the whole texts are. White space around is ignored.

    Example:
        >>> ExactMatch()(["Step 1: 1 + 1 = 2\n\\boxed{2}", "I do not know."], ["\\boxed{2}", "\\boxed{3}"])
        {'exact_match': 0.5}
    """

    generate = True

    def __init__(self, max_new_tokens: PositiveInt = 256) -> None:
        """Set the length of answers.

        Args:
            max_new_tokens: Tokens after which an unfinished answer is cut off.
        """
        self.max_new_tokens = max_new_tokens

    def __call__(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """The share of the predictions that match.

        Args:
            predictions: Generated answers.
            references: The right answer to each.

        Returns:
            `exact_match`, between 0 and 1; NaN where there is nothing to compare.
        """
        right = [matches(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)]
        return {"exact_match": sum(right) / len(right) if right else float("nan")}


def matches(prediction: str, reference: str) -> bool:
    """Whether one answer is right."""
    expected = last_boxed(reference)
    if expected is None:
        return prediction.strip() == reference.strip()
    found = last_boxed(prediction)
    return found is not None and found.strip() == expected.strip()

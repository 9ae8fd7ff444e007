"""A metric: the words that an answer and its reference share."""

from collections import Counter


class WordF1:
    """The mean F1 score of the words of generated answers (Rajpurkar et al., SQuAD, arXiv 1606.05250, section 6.1).

    `generate = True` lets the model answer the questions of the evaluation set. A metric on the logits, which is
    faster, is a pair `(compute(EvalPrediction), preprocess(logits, labels))` instead.

    Args:
        max_new_tokens: Maximum length of an answer, in tokens.
    """

    generate = True

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, max_new_tokens: int = 64) -> None:
        self.max_new_tokens = max_new_tokens

    def __call__(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """What is logged, by name. Trainer puts `eval_` in front of the name."""
        pairs = zip(predictions, references, strict=True)
        scores = [f1(answer.split(), reference.split()) for answer, reference in pairs]
        return {"word_f1": sum(scores) / max(len(scores), 1)}


def f1(answer: list[str], reference: list[str]) -> float:
    """The harmonic mean of precision and recall, each word counted as often as it occurs."""
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / max(len(answer) + len(reference), 1)

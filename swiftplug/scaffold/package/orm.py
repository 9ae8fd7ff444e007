"""An outcome reward model (ORM): is the last line of the answer the right one?"""

from typing import Any

from swiftplug.plugin import ORM, InferRequest


class SameLastLine(ORM):
    """1 where the last line of an answer is that of its reference, else 0.

    Args:
        ignore_case: Whether capital letters make no difference.
    """

    # The parameters are the plugin's options; they are checked against their annotations.
    def __init__(self, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case

    def __call__(
        self, infer_requests: list[InferRequest], ground_truths: list[str | None], **kwargs: Any
    ) -> list[float]:
        """One reward for each request, whose last message is the answer. A reference is None where a row has none."""
        answers = [self.answer_of(request.messages[-1]["content"]) for request in infer_requests]
        references = [self.answer_of(truth or "") for truth in ground_truths]
        pairs = zip(answers, references, strict=True)
        return [float(answer is not None and answer == truth) for answer, truth in pairs]

    def answer_of(self, text: str) -> str | None:
        """The final answer that a text gives, by which a majority of answers is counted; None if there is none."""
        line = text.strip().rpartition("\n")[2].strip()
        return (line.lower() if self.ignore_case else line) or None

from swiftplug.plugin import InferRequest
from swiftplug.scaffold.package.prm import ShortSteps


def test_a_long_step_is_worth_less() -> None:
    answers = ["one two\n\none two three four\n", ""]
    requests = [InferRequest([{"role": "assistant", "content": answer}]) for answer in answers]
    assert ShortSteps(words=3)(requests) == [[1.0, 0.75], []]

r"""A dataset that needs no download: generated arithmetic word problems."""

import hashlib
import random
from typing import Any, Literal, NamedTuple

import datasets

from swiftplug.plugin import UserError

Operator = Literal["+", "-"]
Split = Literal["train", "test"]

PEOPLE = {
    "She": ("Ana", "Eva", "Ida", "Kim", "Lea", "Mia", "Noa", "Zoe"),
    "He": ("Ben", "Dan", "Jon", "Leo", "Max", "Pau", "Sam", "Tom"),
}
THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "keys", "nuts", "pears", "pens", "plums", "shells")
STARTS = ("{name} has {number} {things}.", "{name} picks {number} {things}.", "{name} owns {number} {things}.")
EVENTS: dict[Operator, tuple[str, ...]] = {
    "+": ("{pronoun} buys {number} more.", "{pronoun} finds {number} more.", "{pronoun} gets {number} from {friend}."),
    "-": ("{pronoun} loses {number}.", "{pronoun} sells {number}.", "{pronoun} gives {number} to {friend}."),
}
QUESTIONS = ("How many {things} does {name} have now?", "How many {things} are left with {name}?")

TEST_SHARE = 5  # one calculation in five belongs to the test split
ATTEMPTS = 2000  # after this many consecutive draws without a new problem, it is assumed that there are no more


class Step(NamedTuple):
    """One calculation of a problem."""

    left: int
    operator: Operator
    right: int

    @property
    def result(self) -> int:
        """The value of the calculation."""
        return self.left + self.right if self.operator == "+" else self.left - self.right

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


def arithmetic(
    *,
    size: int = 1000,
    seed: int = 42,
    split: Split = "train",
    min_steps: int = 1,
    max_steps: int = 2,
    max_number: int = 15,
) -> datasets.Dataset:
    r"""Generated arithmetic word problems with step-by-step answers that end in `\boxed{...}`, all different.

    The split of a problem depends on its calculation, not on its words: for any sizes, seeds and difficulties, no
    calculation of one split occurs in the other.

    Args:
        size: Number of problems.
        seed: Seed of the problems.
        split: `train` or `test`.
        min_steps: Smallest number of steps in an answer.
        max_steps: Largest number of steps in an answer; all numbers of steps are equally frequent.
        max_number: Largest number that occurs, also as the result of a step.

    Returns:
        Rows with `messages`, a question and its answer, and `solution`, the answer's last line: `\boxed{...}`.

    Raises:
        UserError: An option allows no problems, or `size` exceeds the number of different problems.
    """
    if size < 1 or not 1 <= min_steps <= max_steps or max_number < 2:
        raise UserError(
            f"dataset arithmetic: size={size}, min_steps={min_steps}, max_steps={max_steps}, max_number={max_number}; "
            "expected size >= 1, 1 <= min_steps <= max_steps and max_number >= 2"
        )
    rng = random.Random(f"{split} {seed}")
    problems: dict[str, list[Step]] = {}
    attempts = 0
    while len(problems) < size:
        steps = _draw_steps(rng, rng.randint(min_steps, max_steps), max_number)
        question = _write_question(rng, steps)
        if _split_of(steps) == split and question not in problems:
            problems[question] = steps
            attempts = 0
        elif (attempts := attempts + 1) == ATTEMPTS:
            raise UserError(
                f"dataset arithmetic: size={size}, but only {len(problems)} different problems were found with "
                f"max_steps={max_steps} and max_number={max_number}; raise one of them or lower the size"
            )
    return datasets.Dataset.from_list([_to_row(question, steps) for question, steps in problems.items()])


def _draw_steps(rng: random.Random, count: int, max_number: int) -> list[Step]:
    """A chain of calculations, each starting from the last one's result; all results are in 1..max_number."""
    total = rng.randint(2, max_number)
    steps = []
    for _ in range(count):
        largest: dict[Operator, int] = {"+": max_number - total, "-": total - 1}
        operator = rng.choice([operator for operator in largest if largest[operator] > 0])
        steps.append(Step(total, operator, rng.randint(1, largest[operator])))
        total = steps[-1].result
    return steps


def _write_question(rng: random.Random, steps: list[Step]) -> str:
    """The word problem for a chain of calculations."""
    pronoun = rng.choice(tuple(PEOPLE))
    name = rng.choice(PEOPLE[pronoun])
    friend = rng.choice([other for people in PEOPLE.values() for other in people if other != name])
    words = {"name": name, "pronoun": pronoun, "friend": friend, "things": rng.choice(THINGS)}
    sentences = [
        rng.choice(STARTS).format(number=steps[0].left, **words),
        *(rng.choice(EVENTS[step.operator]).format(number=step.right, **words) for step in steps),
        rng.choice(QUESTIONS).format(**words),
    ]
    return " ".join(sentences)


def _split_of(steps: list[Step]) -> Split:
    """The split that a chain of calculations belongs to."""
    digest = hashlib.sha256("; ".join(map(str, steps)).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % TEST_SHARE == 0 else "train"


def _to_row(question: str, steps: list[Step]) -> dict[str, Any]:
    """A problem as a row of the dataset."""
    solution = rf"\boxed{{{steps[-1].result}}}"
    answer = "\n".join([*(f"Step {index}: {step}" for index, step in enumerate(steps, start=1)), solution])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "solution": solution}

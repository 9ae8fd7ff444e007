r"""Arithmetic word problems, made on the spot, with answers reasoned in steps that end in `\boxed{...}`."""

import hashlib
import random
from typing import Any, Literal, NamedTuple

import datasets

from swiftplug.errors import UserError

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

TEST_SHARE = 5  # one calculation in so many belongs to the test split
ATTEMPTS = 2000  # draws in a row without a new problem after which there are taken to be no more


class Step(NamedTuple):
    """One calculation of a problem."""

    left: int
    operator: Operator
    right: int

    @property
    def result(self) -> int:
        """What it comes to."""
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
    r"""Word problems, no two alike, of people who gain and lose things.

    Which split a problem belongs to is decided by its calculation, not by its words: no calculation of one split occurs
    in the other, whatever the sizes, seeds and difficulties.

    Args:
        size: How many problems.
        seed: Decides which.
        split: `train` or `test`.
        min_steps: Fewest steps of an answer.
        max_steps: Most steps of an answer; each number of steps is as frequent as any other.
        max_number: Largest number that occurs, results of steps among them.

    Returns:
        Rows of `messages`, a question and its answer, and `solution`, the answer's last line: `\boxed{...}`.

    Raises:
        UserError: A number that makes no problems, or more problems asked for than there are.
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
        steps = draw_steps(rng, rng.randint(min_steps, max_steps), max_number)
        question = ask(rng, steps)
        if belongs_to(steps) == split and question not in problems:
            problems[question] = steps
            attempts = 0
        elif (attempts := attempts + 1) == ATTEMPTS:
            raise UserError(
                f"dataset arithmetic: size={size}, but only {len(problems)} different problems were found with "
                f"max_steps={max_steps} and max_number={max_number}; raise one of them or lower the size"
            )
    return datasets.Dataset.from_list([to_row(question, steps) for question, steps in problems.items()])


def draw_steps(rng: random.Random, count: int, max_number: int) -> list[Step]:
    """A chain of calculations, each of which goes on from the result of the one before; none leaves 1..max_number."""
    total = rng.randint(2, max_number)
    steps = []
    for _ in range(count):
        largest: dict[Operator, int] = {"+": max_number - total, "-": total - 1}
        operator = rng.choice([operator for operator in largest if largest[operator] > 0])
        steps.append(Step(total, operator, rng.randint(1, largest[operator])))
        total = steps[-1].result
    return steps


def ask(rng: random.Random, steps: list[Step]) -> str:
    """The question that a chain of calculations answers."""
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


def belongs_to(steps: list[Step]) -> Split:
    """The split that a chain of calculations is for."""
    digest = hashlib.sha256("; ".join(map(str, steps)).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % TEST_SHARE == 0 else "train"


def to_row(question: str, steps: list[Step]) -> dict[str, Any]:
    """The row of a problem."""
    solution = rf"\boxed{{{steps[-1].result}}}"
    answer = "\n".join([*(f"Step {index}: {step}" for index, step in enumerate(steps, start=1)), solution])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "solution": solution}

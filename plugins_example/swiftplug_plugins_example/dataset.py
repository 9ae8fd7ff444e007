"""A dataset: any number of words to spell backwards."""

import random
import string

from datasets import Dataset


def backwards(*, size: int = 1000, seed: int = 42, min_length: int = 3, max_length: int = 8) -> Dataset:
    """Make questions such as "Spell abc backwards." with their answers. All are different.

    Args:
        size: Number of rows. Keyword-only parameters are a plugin's options: `--set dataset.backwards.size=200`.
        seed: Seed of the words.
        min_length: Minimum number of letters of a word.
        max_length: Maximum number of letters of a word.

    Returns:
        Rows with `messages`: the last one is the answer, which is trained and is the reference of ORMs.
    """
    possible = sum(len(string.ascii_lowercase) ** length for length in range(min_length, max_length + 1))
    if not 1 <= size <= possible:
        raise ValueError(f"size is {size}, but there are {possible} words of {min_length} to {max_length} letters")
    generator = random.Random(seed)
    words: dict[str, None] = {}  # keeps its order, unlike a set
    while len(words) < size:
        length = generator.randint(min_length, max_length)
        words["".join(generator.choices(string.ascii_lowercase, k=length))] = None
    return Dataset.from_list([{"messages": _messages(word)} for word in words])


def _messages(word: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Spell {word} backwards."},
        {"role": "assistant", "content": word[::-1]},
    ]

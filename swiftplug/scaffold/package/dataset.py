"""A dataset: letters to count."""

import random

from datasets import Dataset


# The keyword-only parameters are the plugin's options; they are checked against their annotations.
def count_letters(*, size: int = 1000, seed: int = 42, length: int = 8) -> Dataset:
    """Make questions such as "How many a in abca?", with their answers.

    Args:
        size: Number of rows.
        seed: Seed of the words.
        length: Number of letters of a word.

    Returns:
        Rows with `messages`. The last one is the answer: it trains, and it is the reference of rewards.
    """
    generator = random.Random(seed)
    rows = []
    for _ in range(size):
        word = "".join(generator.choices("abc", k=length))
        question = {"role": "user", "content": f"How many a in {word}?"}
        rows.append({"messages": [question, {"role": "assistant", "content": str(word.count("a"))}]})
    return Dataset.from_list(rows)

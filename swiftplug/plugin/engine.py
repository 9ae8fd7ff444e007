"""The contract of engines: what turns prompts into candidates."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """A question to answer, several times.

    Attributes:
        id: Of its row; with the run's seed and a candidate's index it decides what is drawn for that candidate.
        messages: The conversation up to the question, as the chat template is to read it: a tools format has already
            written its tools into it.
        tools: The tools that are left to the chat template, or None.
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


class Completion(NamedTuple):
    """One candidate's text.

    Attributes:
        text: The answer; reasoning that a server tells apart stands before it, in a `<think>` block.
        finish_reason: Why it ended: `stop` (the model ended its turn), `length` (`max_new_tokens`), or what a server
            says.
    """

    text: str
    finish_reason: str


class Answered(NamedTuple):
    """What became of a prompt.

    Attributes:
        id: The prompt's.
        completions: Its candidates, in the order of their index; empty where it failed.
        failure: Why there are none, in one line; empty where it worked.
    """

    id: str
    completions: Sequence[Completion] = ()
    failure: str = ""


class Sampling(NamedTuple):
    """How candidates are drawn.

    Attributes:
        num_return_sequences: Candidates a prompt.
        max_new_tokens: Tokens after which one is cut off.
        temperature: 0 is greedy.
        top_p: Draw from the fewest tokens whose probabilities sum to this (Holtzman et al., arXiv 1904.09751); 1: off.
        top_k: Draw from so many of the likeliest tokens; 0 for all.
        seed: The run's.
    """

    num_return_sequences: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int

    def seed_of(self, prompt_id: str, index: int) -> int:
        """The seed of one candidate: the same whatever else is sampled beside it, before it or on another machine.

        Returns:
            A number below 2**63.
        """
        import hashlib  # listing plugins should not wait for it

        digest = hashlib.sha256(f"{self.seed}/{prompt_id}/{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


class Engine:
    """Turns prompts into candidates. The parameters of `__init__` are the options of the plugin.

    An engine whose results depend on what is sampled together says so in `together`: then a run hands it always the
    same prompts at once, whatever was killed in between and however a dataset was cut into shards.
    """

    together: bool = False
    """Whether what a prompt gets may depend, if only by rounding, on the prompts beside it."""

    def prompts_at_once(self, sampling: Sampling) -> int:
        """How many prompts `generate` is to be given at once; what was answered is on disk after each such batch."""
        return 256

    def open(self, args: Any, sampling: Sampling) -> None:
        """Load the model, or find the server; called once, when all else has been checked.

        Args:
            args: The run's arguments: see `swiftplug.plugin.RunArguments`.
            sampling: How candidates are drawn.

        Raises:
            UserError: There is no such model, or no such server.
        """

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts.

        Args:
            prompts: At most `prompts_at_once`.

        Yields:
            What became of each, in any order, as soon as it is known.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what `open` took."""

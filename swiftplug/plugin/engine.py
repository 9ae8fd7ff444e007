"""The contract of engines: they turn prompts into candidates."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from swiftplug.plugin.arguments import RunArguments


class Prompt(NamedTuple):
    """A question to answer, several times.

    Attributes:
        id: The id of its row. With the seed of the run and the index of a candidate it decides what is drawn.
        messages: The conversation up to the question, ready for the chat template. A tools format has already written
            its tools into it.
        tools: The tools that are left to the chat template, or None.
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


class Completion(NamedTuple):
    """The text of one candidate.

    Attributes:
        text: The answer. Reasoning that a server returns separately is put in front of it, in a `<think>` block.
        finish_reason: Why it ended: `stop` (the model ended its turn), `length` (it reached `max_new_tokens`), or the
            reason that a server gives.
    """

    text: str
    finish_reason: str


class Answered(NamedTuple):
    """The candidates of one prompt, or the reason why there are none.

    Attributes:
        id: The id of the prompt.
        completions: Its candidates, ordered by index; empty if it failed.
        failure: Why there are none, in one line; empty if there are.
    """

    id: str
    completions: Sequence[Completion] = ()
    failure: str = ""


class Sampling(NamedTuple):
    """How candidates are drawn.

    Attributes:
        num_return_sequences: Number of candidates per prompt.
        max_new_tokens: Maximum length of a candidate, in tokens.
        temperature: Sampling temperature; 0 means greedy decoding.
        top_p: Nucleus sampling (Holtzman et al., arXiv 1904.09751): draw from the smallest set of tokens whose
            probabilities sum to at least this; 1 turns it off.
        top_k: Draw from this many of the most likely tokens; 0 means from all.
        seed: The seed of the run.
    """

    num_return_sequences: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int

    def seed_of(self, prompt_id: str, index: int) -> int:
        """The seed of one candidate. It does not depend on what else is sampled, in which order, or on which machine.

        Args:
            prompt_id: `Prompt.id`.
            index: The index of the candidate among those of its prompt, from 0.

        Returns:
            An integer from 0 to 2**63 - 1.
        """
        import hashlib  # only here: it would slow down `list-plugins`

        digest = hashlib.sha256(f"{self.seed}/{prompt_id}/{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


class Engine:
    """Base class of engines. The parameters of `__init__` are the options of the plugin.

    Example:
        >>> class Echo(Engine):
        ...     def open(self, args, sampling):
        ...         self.count = sampling.num_return_sequences
        ...
        ...     def generate(self, prompts):
        ...         for prompt in prompts:
        ...             yield Answered(prompt.id, [Completion(prompt.messages[-1]["content"], "stop")] * self.count)
    """

    # Whether the candidates of a prompt may depend, if only by rounding, on the other prompts of the same call. If so,
    # `generate` always gets the same prompts together, whatever was interrupted and however the dataset was split.
    together: bool = False

    def prompts_at_once(self, sampling: Sampling) -> int:
        """The maximum number of prompts per call of `generate`. Candidates are on disk after each call.

        Args:
            sampling: How candidates are drawn.
        """
        return 256

    def open(self, args: "RunArguments", sampling: Sampling) -> None:
        """Load the model, or connect to the server. Called once, after everything else has been checked.

        Args:
            args: The run's arguments, with which it can load the run's model; see `swiftplug.plugin.RunArguments`.
            sampling: How candidates are drawn.

        Raises:
            UserError: If there is no such model or server.
        """

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Answer prompts.

        Args:
            prompts: At most `prompts_at_once` of them.

        Yields:
            The result of each prompt, in any order, as soon as it is there.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Release what `open` took."""

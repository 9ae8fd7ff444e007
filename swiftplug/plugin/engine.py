"""The contract of engines, which turn prompts into candidates."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from swiftplug.errors import UserError

if TYPE_CHECKING:
    from swiftplug.plugin.arguments import RunArguments


class Prompt(NamedTuple):
    """A question, for which candidates are generated.

    Attributes:
        id: The id of its row. Together with the run's seed and a candidate's index, it determines the candidate's seed.
        messages: The conversation up to the question, ready for the chat template. If a tools format writes the
            tools, it has already done so.
        tools: The tools that the chat template is to write, or None.
        chat_template_kwargs: The row's variables for the chat template.
        ids: The tokens of all this, if they are known; an engine that follows a model continues them as they are.
        max_new_tokens: The limit of this prompt; None is that of the run. Only for engines that follow a model.
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({})
    ids: Sequence[int] | None = None
    max_new_tokens: int | None = None


class Chat(Protocol):
    """How the run's tokenizer and chat template write prompts and answers; `args.load_chat()` returns it.

    An engine that uses it generates the text that training writes: special tokens inside an answer stay, its end of
    turn goes, and what the prompt opens (`<think>`) belongs to the answer.

    Attributes:
        end_ids: The tokens that end an answer: the chat template's end-of-turn token first, then the tokenizer's end
            token and those of the model's generation config.
        stop_text: The text that ends an answer, if the chat template's end of turn is no single token; else empty.

    Example:
        >>> ids, opened = chat.encode(prompt)
        >>> output = model.generate(torch.tensor([ids]), eos_token_id=chat.end_ids)
        >>> chat.answer(output[0, len(ids):].tolist(), opened)
    """

    end_ids: list[int]
    stop_text: str

    def encode(self, prompt: Prompt) -> tuple[list[int], str]:
        """The tokens of a prompt with its generation prompt, and the end of its text that belongs to the answer.

        Raises:
            UserError: The chat template refuses the prompt.
        """

    def answer(self, ids: Sequence[int], opened: str = "") -> str:
        """The text of an answer.

        Args:
            ids: The generated tokens; what follows the end of the turn is ignored.
            opened: The end of the prompt that belongs to the answer.
        """

    def reply(self, answered: Prompt, replied: Prompt) -> list[int]:
        """The tokens between the end of an answer and the next one: messages that reply to it, the generation prompt.

        Args:
            answered: A conversation that ends with the answer.
            replied: The same with the reply.

        Raises:
            UserError: The chat template refuses it, or writes what is before the reply differently once there is one.
        """

    def has_stopped(self, ids: Sequence[int]) -> bool:
        """Whether the last tokens complete `stop_text`; an answer without one is ended by `end_ids` alone."""


class Completion(NamedTuple):
    """The text of one candidate.

    Attributes:
        text: The answer, as training would write it: with special tokens, and with what the prompt opens (`<think>`);
            without its end of turn. Reasoning that a server returns separately becomes a `<think>` block before it.
        finish_reason: Why generation ended: `stop` (end of turn), `length` (`max_new_tokens` was reached), or what a
            server reports.
        ids: The tokens as they were drawn, the one that ended the answer too; empty unless the engine follows a model.
        logps: The log-probability of each at the run's temperature, before `top_p` and `top_k`; empty if the engine
            draws with the weights of the model in training themselves, or does not know.
    """

    text: str
    finish_reason: str
    ids: Sequence[int] = ()
    logps: Sequence[float] = ()


class Answered(NamedTuple):
    """The candidates of one prompt, or the reason why there are none.

    Attributes:
        id: The id of the prompt.
        completions: Its candidates, ordered by index; empty if generation failed.
        failure: Why there are no candidates, in one line; empty if there are some.
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
        """The seed of one candidate. It does not depend on other candidates, their order, or the machine.

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

    Attributes:
        together: Whether the candidates of a prompt may depend, if only by rounding, on the other prompts of the same
            call. If so, `generate` always gets the same prompts together, even after an interruption or in a sharded
            run.
        uses_chat: Whether it generates with `args.load_chat()`; then references too are written with the run's chat
            template.
        may_change: The options that do not change the candidates: they may differ when a run is resumed.
        follows: Whether it can draw from a model in training, see `follow`.

    Example:
        >>> class Echo(Engine):
        ...     def open(self, args, sampling):
        ...         self.count = sampling.num_return_sequences
        ...
        ...     def generate(self, prompts):
        ...         for prompt in prompts:
        ...             yield Answered(prompt.id, [Completion(prompt.messages[-1]["content"], "stop")] * self.count)
    """

    together: bool = False
    uses_chat: bool = False
    may_change: Collection[str] = ()
    follows: bool = False

    def prompts_at_once(self, sampling: Sampling) -> int:
        """The maximum number of prompts per call of `generate`. Candidates are on disk after each call.

        Args:
            sampling: How candidates are drawn.
        """
        return 256

    def check_run(self, args: "RunArguments") -> None:
        """Refuse a run that it cannot act in; called before the data is read. One that `uses_chat` needs a model.

        Args:
            args: The run's arguments.

        Raises:
            UserError: The run has no model.
        """
        if self.uses_chat and args.model is None and args.adapter is None:
            raise UserError("no model; name a folder, a hub id or a model plugin with --model or the key 'model'")

    def open(self, args: "RunArguments", sampling: Sampling) -> None:
        """Load the model, or connect to the server. Called once, after everything else has been checked.

        Args:
            args: The run's arguments; they can load the run's model, see `swiftplug.plugin.RunArguments`.
            sampling: How candidates are drawn.

        Raises:
            UserError: The model cannot be loaded, or the server cannot be reached.
        """

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Generate the candidates of prompts.

        Args:
            prompts: At most `prompts_at_once` of them.

        Yields:
            The result of each prompt, in any order, as soon as it is available.
        """
        raise NotImplementedError

    def stream(self, prompt: Prompt) -> Iterator[Completion]:
        """Generate the first candidate of a prompt piece by piece, for a conversation; by default in one piece.

        Args:
            prompt: A prompt; the next one of a conversation begins with the messages of this one and its answer.

        Yields:
            The candidate so far: its text begins with that of the one before; `finish_reason` is empty until the last.
            The iterator may be closed, or interrupted by Ctrl-C, before.

        Raises:
            UserError: There is none.
        """
        for answered in self.generate([prompt]):
            if answered.failure:
                raise UserError(answered.failure)
            yield answered.completions[0]

    def follow(self, args: "RunArguments", model: Any) -> None:
        """Get ready to draw from a model in training. Called once, instead of `open`, by a run whose task is online.

        Args:
            args: The run's arguments.
            model: The model as the tuner prepared it, not wrapped for several processes.
        """
        raise NotImplementedError

    def draw(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Answered]:
        """Draw candidates from the model that it follows, with its weights as they are now.

        Args:
            prompts: Any number of them; the same ones together in a run that is resumed.
            sampling: How candidates are drawn. `sampling.seed_of(prompt.id, index)` is the seed of each.

        Yields:
            The result of each prompt, in any order; its completions have `ids`.
        """
        raise NotImplementedError

    def rest(self) -> None:
        """Free what the next optimizer steps need, such as the memory of a GPU; called after each drawing."""

    def close(self) -> None:
        """Release what `open` or `follow` acquired."""

"""No sampling: the candidates exist already."""

from collections.abc import Iterator, Sequence

from swiftplug.plugin import Answered, Engine, Prompt, UserError


class NoEngine(Engine):
    """Samples nothing: the candidates come from a file."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Refuse; a run with this engine has nothing to sample.

        Raises:
            UserError: Always.
        """
        raise UserError("engine 'none' samples nothing; name the candidates to score with --candidates-file")

"""An engine for candidates that exist already."""

from collections.abc import Iterator, Sequence

from swiftplug.plugin import Answered, Engine, Prompt, UserError


class NoEngine(Engine):
    """Generates nothing: the candidates come from a file."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Answered]:
        """Raise an error: this engine cannot generate.

        Raises:
            UserError: Always.
        """
        raise UserError("engine 'none' only scores; name existing candidates with --candidates-file")

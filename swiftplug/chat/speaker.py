"""One side of a conversation: the model of a run, and what was said so far."""

from collections.abc import Iterator
from typing import Any

from swiftplug.config.schema import SampleConfig
from swiftplug.data.chat.tools import write_turns
from swiftplug.data.read.conversation import Conversation, RowError, RowOrigin
from swiftplug.errors import UserError
from swiftplug.plugin import Completion, Prompt, Sampling
from swiftplug.plugin.registry import PluginChoice, fields_of
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.runs.trained import recorded_config, recorded_rows

_NUM_ROWS = 100  # that must agree in their system message, or in their tools
_SYSTEM_ROLES = ("system", "developer")


class Speaker:
    """A model, and its own course of the conversation. Models side by side hear the same turns of the user.

    Attributes:
        name: The run, model folder or hub id.
        system: The system message; empty for none.
        tools: The tools, as rows of a dataset describe them.
        turns: The messages after the system message.
        notes: What the user should know at the start.

    Args:
        config: A config whose model it is.
        system: The system message; None is that of the run's rows.
    """

    def __init__(self, config: SampleConfig, system: str | None) -> None:
        assert config.model is not None
        self.name = config.model.name
        recorded = recorded_config(self.name)
        if "tools" in recorded and config.tools == SampleConfig.model_fields["tools"].default:
            tools = PluginChoice.model_validate(fields_of(recorded["tools"]))
            config = config.model_copy(update={"tools": tools})
        self.plugins = resolve_plugins(config, ("model", "tools", "engine"))
        self.args = Arguments(config, self.plugins)
        self.args.check_writes()
        self.args.check_plugins()
        self.engine: Any = self.plugins.one("engine").bound
        self.sampling = Sampling(1, config.max_new_tokens, config.temperature, config.top_p, config.top_k, config.seed)
        self.notes = list(self.plugins.registry.notes)
        self.turns: list[dict[str, Any]] = []
        self._count = 0  # of the answers, so that a second answer to the same question is another one
        self._read_rows(recorded, system)

    def _read_rows(self, recorded: dict[str, Any], system: str | None) -> None:
        """Take the system message and the tools that all the first rows of the run have."""
        name, rows = recorded_rows(recorded, self.plugins.registry, _NUM_ROWS)
        systems = [
            row.messages[0]["content"] for row in rows if row.messages and row.messages[0]["role"] in _SYSTEM_ROLES
        ]
        shared = systems[0] if systems and systems == systems[:1] * len(rows) else ""
        self.system = shared if system is None else system
        tools = [row.tools for row in rows]
        self.tools = tools[0] if tools and all(each == tools[0] for each in tools) else None
        if shared and system is None:
            self.notes.append(f"system message, as in all rows of {name}: {shared}")
        if self.tools:
            names = ", ".join(str(tool.get("function", tool).get("name")) for tool in self.tools)
            self.notes.append(f"tools, as in all rows of {name}: {names}")

    def open(self) -> None:
        """Load the model."""
        self.engine.open(self.args, self.sampling)
        self.notes += self.args.notes

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, as a row to train on has it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def answer(self) -> Iterator[Completion]:
        """Generate the answer to what was said, piece by piece; see `Engine.stream`.

        Raises:
            UserError: The chat template or the engine refuses it.
        """
        self._count += 1
        conversation = Conversation(self.messages, RowOrigin("chat", self._count), self.tools)
        try:
            turns = write_turns(conversation, self.plugins.one("tools").bound)
        except RowError as error:
            raise UserError(str(error)) from error
        prompt = Prompt(f"chat-{self._count}", turns.messages, turns.tools, turns.chat_template_kwargs)
        yield from self.engine.stream(prompt)

    def row(self) -> dict[str, Any]:
        """The conversation as a row to train on."""
        return {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}

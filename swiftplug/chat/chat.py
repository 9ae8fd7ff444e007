"""`swiftplug chat`: a conversation with one or several models in the terminal.

1. Plugins, tokenizers and the first rows of the runs are read: they tell the tools format, the system message and the
   tools of each.
2. The engines load the models.
3. Turn by turn, a line is a command or is answered by each model; Ctrl-C stops an answer.
"""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from swiftplug.chat.speaker import Speaker
from swiftplug.chat.terminal import Terminal
from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError, nearest
from swiftplug.formatting import format_count
from swiftplug.plugin import Completion
from swiftplug.runs.console import RunProgress, on_disk
from swiftplug.runs.errors import naming_plugins


def chat(configs: Sequence[SampleConfig], system: str | None = None) -> None:
    """Hold a conversation with models until the user ends it, or the input ends.

    Args:
        configs: For each model, a config that names it, as for sampling.
        system: The system message; None is that of all the rows of a run, if they have one.

    Raises:
        UserError: A model cannot be loaded, or is none that writes text.

    Example:
        >>> chat([load_model_config("runs/first", {"temperature": 0.7}, [])])
    """
    terminal = Terminal()
    with RunProgress(Console(stderr=True)) as progress:
        with progress.start("loading plugins and tokenizer"):
            speakers = [Speaker(config, system) for config in configs]
        for speaker in speakers:
            loading = progress.start(f"loading {speaker.name}", live=on_disk([speaker.name]))
            with naming_plugins(speaker.plugins.all()), loading:
                speaker.open()
    for speaker in speakers:
        for note in speaker.notes:
            terminal.note(f"{speaker.name}: {note}" if len(speakers) > 1 else note)
    try:
        Talk(speakers, terminal).run()
    finally:
        for speaker in speakers:
            speaker.engine.close()


class Talk:
    """A conversation: reads lines until the end, and answers or obeys them."""

    def __init__(self, speakers: Sequence[Speaker], terminal: Terminal) -> None:
        self.speakers, self.terminal, self.ended = speakers, terminal, False
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._system,
            "/undo": self._undo,
            "/regenerate": self._regenerate,
            "/tool": self._tool,
            "/save": self._save,
            "/exit": self._exit,
        }

    def run(self) -> None:
        """Hold the conversation."""
        if self.terminal.interactive:
            names = " | ".join(speaker.name for speaker in self.speakers)
            self.terminal.note(f"{names} - /help shows the commands; Ctrl-C stops an answer, Ctrl-D ends")
        with _interruptible():
            while not self.ended:
                try:
                    text = self.terminal.read()
                    if text is None:
                        return
                    self._obey_or_answer(text)
                except KeyboardInterrupt:
                    self.terminal.note("\nCtrl-D or /exit ends")
                except UserError as error:
                    if not self.terminal.interactive:
                        raise
                    self.terminal.note(f"error: {error}", "red")

    def _obey_or_answer(self, text: str) -> None:
        """Do what a line says."""
        if not text.strip():
            return
        if not text.startswith("/"):
            self._say("user", text.strip())
            return
        word, _, rest = text.partition(" ")
        command = self.commands.get("/clear" if word == "/reset" else word)
        if command is None:
            hint = nearest(word, self.commands)
            raise UserError(f"no command {word}{hint} (a line that begins with a space is sent as it is)")
        command(rest.strip())

    def _say(self, role: str, text: str) -> None:
        self._answer([[*speaker.turns, {"role": role, "content": text}] for speaker in self.speakers])

    def _answer(self, turns: Sequence[list[dict[str, Any]]]) -> None:
        """Let each model answer its turns. Ctrl-C keeps what there is, if there is any; an error leaves all as it was.

        So all models always have the same turns of the user, each with an answer of its own, which may be empty.
        """
        before = [speaker.turns for speaker in self.speakers]
        self._set_turns(turns)
        answers = [Completion("", "")] * len(self.speakers)
        try:
            names = [speaker.name for speaker in self.speakers]
            for so_far in self.terminal.show(names, [speaker.answer() for speaker in self.speakers]):
                answers = so_far
        except KeyboardInterrupt:
            self.terminal.note("stopped")
        except UserError:
            self._set_turns(before)
            raise
        if not any(answer.text or answer.finish_reason for answer in answers):
            self._set_turns(before)
            return
        for speaker, answer in zip(self.speakers, answers, strict=True):
            speaker.turns.append({"role": "assistant", "content": answer.text})
            if answer.finish_reason == "length":
                limit = f"cut off at {format_count(speaker.sampling.max_new_tokens, 'token')}; --max-new-tokens N"
                self.terminal.note(f"{speaker.name}: {limit}" if len(self.speakers) > 1 else limit)

    def _set_turns(self, turns: Sequence[list[dict[str, Any]]]) -> None:
        for speaker, its in zip(self.speakers, turns, strict=True):
            speaker.turns = its

    def _help(self, rest: str) -> None:
        for line in (
            "/clear            forget the conversation (or /reset)",
            "/system TEXT      set the system message, and forget the conversation; without TEXT there is none",
            "/undo             forget the last question and its answer",
            "/regenerate       answer the last question anew",
            "/tool TEXT        give the result of a tool that the model has called",
            "/save FILE        add the conversation to a JSONL file, as a row that train reads",
            "/exit             end (or Ctrl-D)",
            '"""               begin and end a turn of several lines',
        ):
            self.terminal.note(line)

    def _clear(self, rest: str) -> None:
        self._set_turns([[] for _ in self.speakers])

    def _system(self, rest: str) -> None:
        self._clear("")
        for speaker in self.speakers:
            speaker.system = rest

    def _undo(self, rest: str) -> None:
        if not self._has_answers:
            raise UserError("/undo: there is no question yet")
        for speaker in self.speakers:
            del speaker.turns[max(place for place, turn in enumerate(speaker.turns) if turn["role"] == "user") :]

    def _regenerate(self, rest: str) -> None:
        if not self._has_answers:
            raise UserError("/regenerate: there is no answer yet")
        self._answer([speaker.turns[:-1] for speaker in self.speakers])

    def _tool(self, rest: str) -> None:
        if not rest or not self._has_answers:
            raise UserError("/tool TEXT: is the result of a call in the answer before it")
        self._say("tool", rest)

    @property
    def _has_answers(self) -> bool:
        return all(speaker.turns for speaker in self.speakers)

    def _save(self, rest: str) -> None:
        """Add the conversation, of each model its own, to a file of rows."""
        if not rest:
            raise UserError("/save FILE: name a JSONL file")
        if not self._has_answers:
            raise UserError("/save: nothing was said yet")
        rows = [speaker.row() for speaker in self.speakers]
        file = Path(rest).expanduser()
        try:
            _check_rows(file)
            with file.open("a", encoding="utf-8", newline="\n") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise UserError(f"/save {rest}: {error.strerror}") from error
        self.terminal.note(f"{format_count(len(rows), 'row')} added to {file}")

    def _exit(self, rest: str) -> None:
        self.ended = True


def _check_rows(file: Path) -> None:
    """Refuse to add to a file that has something else than rows of conversations."""
    if not file.exists():
        return
    with file.open("rb") as there:
        lines = there.readlines()
    with suppress(ValueError, TypeError, KeyError):
        if not lines or (lines[-1].endswith(b"\n") and json.loads(lines[0])["messages"]):
            return
    raise UserError(f"/save {file}: exists and has no rows of `messages`; name another file")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt every time, as Python does, and not end the command the second time."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

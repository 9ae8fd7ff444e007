"""Reads what the user types, and shows answers while they are generated: in columns, or one below the other."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import zip_longest

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swiftplug.errors import UserError
from swiftplug.plugin import Completion
from swiftplug.runs.console import print_line

_FENCE = '"""'
_NARROWEST = 40  # characters of a column
_REFRESHES = 12  # a second
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421, 0x9B: 0xFFFD}


def printable(text: str) -> str:
    """A text in which control characters, which could command the terminal, are pictures of themselves."""
    return text.translate(_PICTURES)


class Terminal:
    """The terminal, or pipes in its place: then each line is a turn, and answers alone are written to stdout.

    Attributes:
        interactive: Whether a person types.
        console: Where answers are written.
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._notes = Console(stderr=True, highlight=False)
        self._lines = 0  # that were read from a pipe
        self.interactive = sys.stdin.isatty() and self.console.is_terminal
        if self.interactive:
            with suppress(ImportError):  # editing and history of lines, where Python has them
                import readline

                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> str | None:
        """The next turn of the user; None at the end. A turn of several lines stands between lines of three quotes.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            UserError: It is not Unicode text.
        """
        text = self._line("> ")
        if text is None or not text.lstrip().startswith(_FENCE):
            return text
        text = text.lstrip()[len(_FENCE) :]
        while not text.rstrip().endswith(_FENCE):
            line = self._line(". ")
            if line is None:
                return text
            text = f"{text}\n{line}"
        return text.rstrip()[: -len(_FENCE)].strip("\n")

    def _line(self, mark: str) -> str | None:
        try:
            if self.interactive:
                line = input(mark)
                line.encode()  # bytes that are no text become surrogates
                return line
        except EOFError:
            print()
            return None
        except UnicodeError:
            raise UserError("what was typed is not Unicode text") from None
        raw = sys.stdin.buffer.readline()
        self._lines += 1
        try:
            return raw.decode().rstrip("\r\n") if raw else None
        except UnicodeDecodeError as error:
            found = f"byte {raw[error.start]:#04x} at {error.start + 1}"
            raise UserError(f"the input, line {self._lines}: not UTF-8 text: {found}") from None

    def note(self, line: str, style: str = "dim") -> None:
        """Show what is no answer; with pipes on stderr."""
        print_line(self.console if self.interactive else self._notes, printable(line), style)

    def show(self, names: Sequence[str], answers: Sequence[Iterator[Completion]]) -> Iterator[list[Completion]]:
        """Show answers while they are generated.

        Args:
            names: Who gives them.
            answers: Each of them piece by piece.

        Yields:
            The answers so far, after each piece; one that is interrupted is as far as it came.
        """
        with _without_echo() if self.interactive else nullcontext():
            if len(names) > 1 and self.interactive and self.console.width // len(names) >= _NARROWEST:
                yield from self._in_columns(names, answers)
            else:
                yield from self._in_turn(names, answers)

    def _in_turn(self, names: Sequence[str], answers: Sequence[Iterator[Completion]]) -> Iterator[list[Completion]]:
        """One below the other."""
        done = [Completion("", "")] * len(names)
        for place, (name, answer) in enumerate(zip(names, answers, strict=True)):
            if len(names) > 1:
                self.console.print(Text(f"{name}:", "bold"), soft_wrap=True)
            try:
                for piece in answer:
                    self._write(piece.text[len(done[place].text) :])
                    done[place] = piece
                    yield done
            finally:
                self._write("\n")

    def _write(self, text: str) -> None:
        self.console.file.write(printable(text))
        self.console.file.flush()

    def _in_columns(self, names: Sequence[str], answers: Sequence[Iterator[Completion]]) -> Iterator[list[Completion]]:
        """All at once, each model a token in turn."""
        done = [Completion("", "")] * len(names)

        def table() -> Table:
            columns = Table.grid(expand=True, padding=(0, 2, 0, 0))
            for _ in names:
                columns.add_column(ratio=1, overflow="fold")
            columns.add_row(*(Text(name, "bold", overflow="fold") for name in names))
            columns.add_row(*(Text(printable(each.text)) for each in done))
            return columns

        try:
            with Live(console=self.console, transient=True, refresh_per_second=_REFRESHES, get_renderable=table):
                for pieces in zip_longest(*answers):
                    done = [piece or before for piece, before in zip(pieces, done, strict=True)]
                    yield done
        finally:
            self.console.print(table())  # a live table shows no more than the terminal is high


@contextmanager
def _without_echo() -> Iterator[None]:
    """Keep what is typed, and the ^C of Ctrl-C, out of answers; it is there again at the next prompt."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

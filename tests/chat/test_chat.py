"""`swiftplug chat`: what is answered, kept and saved, with pipes in place of the terminal."""

import io
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from swiftplug.chat.chat import Talk
from swiftplug.chat.speaker import Speaker
from swiftplug.chat.terminal import Terminal, printable
from swiftplug.cli.main import app
from swiftplug.config.load import load_model_config
from swiftplug.errors import UserError
from swiftplug.plugin import Completion, Engine, Prompt

GREEDY = ("--temperature", "0", "--max-new-tokens", "12", "--set", "dtype=float32")
ECHO = """
from swiftplug.plugin import Answered, Completion, Engine, register_engine

@register_engine("echo")
class Echo(Engine):
    def generate(self, prompts):
        for prompt in prompts:
            said = " / ".join(f"{each['role']}={each['content']}" for each in prompt.messages)
            yield Answered(prompt.id, [Completion(said, "stop")])
"""


def chat(lines: str | bytes, *arguments: object) -> Any:
    """Run the command with lines as its input; a UserError goes through."""
    result = CliRunner().invoke(app, ["chat", *map(str, arguments)], input=lines, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture
def echo(tmp_path: Path) -> list[str]:
    """The options for an engine that answers with the messages of its prompt, and loads no model."""
    file = tmp_path / "echo.py"
    file.write_text(ECHO, encoding="utf-8")
    return ["--engine", "echo", "--plugin", str(file)]


def test_greedy_answers_are_those_of_plain_generate(tiny_model_dir: Path) -> None:
    """Also in the second turn, which goes on with the first one's cache."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    messages: list[dict[str, str]] = []
    questions = ["Hello 你好 👩‍🔬", "And then?"]
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids, do_sample=False, max_new_tokens=12, eos_token_id=2)
        new = written[0, ids["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode([each for each in new if each != 2], clean_up_tokenization_spaces=False)
        messages.append({"role": "assistant", "content": text})
    result = chat("".join(f"{each}\n" for each in questions), tiny_model_dir, *GREEDY)
    assert result.stdout == "".join(f"{printable(each['content'])}\n" for each in messages[1::2])
    assert "cut off at 12 tokens" in result.stderr


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_grows_to_the_candidate_that_sample_draws(tiny_model_dir: Path, temperature: float) -> None:
    options = {"temperature": temperature, "max_new_tokens": 40}
    speaker = Speaker(load_model_config(str(tiny_model_dir), options, ["dtype=float32"]), None)
    speaker.open()
    engine, first = speaker.engine, [{"role": "user", "content": "one"}]
    later = [*first, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three " * 40}]
    for number, messages in enumerate((first, later, first, later[:1])):
        prompt = Prompt(f"row-{number}", messages)
        pieces = list(engine.stream(prompt))
        [answered] = engine.generate([prompt])
        assert pieces[-1] == answered.completions[0]
        texts = [piece.text for piece in pieces]
        assert all(after.startswith(before) for before, after in pairwise(texts))
        assert not any("\ufffd" in text[-1:] for text in texts[:-1])
        stopped = engine.stream(prompt)  # one that is closed early leaves nothing behind
        next(stopped)
        next(stopped)
        stopped.close()


def test_commands(echo: list[str], tmp_path: Path) -> None:
    lines = [
        "/system Be brief.",
        "a",
        "b",
        "/undo",
        '"""',
        "c1",
        "c2",
        '"""',
        "/regenerate",
        f"/save {tmp_path / 'talk.jsonl'}",
        "/clear",
        " /etc",
        f"/save {tmp_path / 'talk.jsonl'}",
        "/exit",
        "never",
    ]
    result = chat("\n".join(lines), "model", *echo)
    start = "system=Be brief. / user=a / assistant=system=Be brief. / user=a"
    third = f"{start} / user=c1\nc2"
    assert result.stdout == "\n".join(
        ["system=Be brief. / user=a", f"{start} / user=b", third, third, "system=Be brief. / user=/etc", ""]
    )
    first, second = map(json.loads, (tmp_path / "talk.jsonl").read_text().splitlines())
    contents = ["Be brief.", "a", "system=Be brief. / user=a", "c1\nc2", third]
    assert first == {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(["system", "user", "assistant", "user", "assistant"], contents, strict=True)
        ]
    }
    assert [each["content"] for each in second["messages"]][1] == "/etc"


def test_mistakes(echo: list[str], tmp_path: Path, tiny_model_dir: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine\n")
    for lines, message in (
        ("/sav x\n", "no command /sav; did you mean '/save'"),
        ("/undo\n", "there is no question yet"),
        ("/regenerate\n", "there is no answer yet"),
        ("/tool 3\n", "is the result of a call"),
        ("/save x\n", "nothing was said yet"),
        (f"a\n/save {other}\n", "exists and has no rows of `messages`"),
        (f"a\n/save {tmp_path / 'no' / 'x'}\n", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=message):
            chat(lines, "model", *echo)
    assert other.read_text() == "mine\n"
    with pytest.raises(UserError, match="no folder"):
        chat("a\n", f"{tiny_model_dir}x")


def test_input_that_is_not_utf_8_is_refused_after_what_came_before_it(echo: list[str]) -> None:
    with pytest.raises(UserError, match=r"^the input, line 3: not UTF-8 text: byte 0xe9 at 4$"):
        chat(b"/clear\n\xe4\xbd\xa0\ncaf\xe9\n", "model", *echo)
    assert chat("é\r\n".encode(), "model", *echo).stdout == "user=é\n"


def test_at_a_terminal_text_that_is_not_unicode_does_not_end_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["caf\udce9", "/exit"])
    notes: list[str] = []
    terminal = Terminal()
    terminal.interactive = True
    monkeypatch.setattr("builtins.input", lambda mark: next(lines))
    monkeypatch.setattr(terminal, "note", lambda line, style="": notes.append(line))
    Talk([], terminal).run()
    assert notes[1:] == ["error: what was typed is not Unicode text"]


@pytest.mark.parametrize("name", ["none", "swiftplug:none"])
def test_an_engine_that_generates_nothing_is_refused(name: str) -> None:
    for command in ("chat one", "evaluate one --dataset q.jsonl --orm math"):
        with pytest.raises(UserError) as raised:
            chat("", *command.split()[1:], "--engine", name) if command.startswith("chat") else CliRunner().invoke(
                app, [*command.split(), "--engine", name], standalone_mode=False, catch_exceptions=False
            )
        assert str(raised.value) == "--engine: 'none' generates no answers; name one that does, such as transformers"


def test_system_message_and_tools_of_a_runs_rows(echo: list[str], tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object"}}}
    row = {
        "messages": [
            {"role": "system", "content": "You add."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
        ],
        "tools": [tool],
    }
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    run.mkdir()
    (run / "config.yaml").write_text(f"dataset: [{data}]\ntools: hermes\nmodel: base\n")
    (run / "run.json").write_text(json.dumps({"versions": {"swiftplug": "0"}}))
    result = chat(f"2 + 2?\n/tool 4\n/save {tmp_path / 'talk.jsonl'}\n", run, *echo)
    assert result.stdout.startswith("system=You add.\n\n")
    assert '"name": "add"' in result.stdout
    assert "user=<tool_response>\n4\n</tool_response>" in result.stdout
    assert f"system message, as in all rows of {data}: You add." in result.stderr
    assert f"tools, as in all rows of {data}: add" in result.stderr
    saved = json.loads((tmp_path / "talk.jsonl").read_text())
    assert saved["tools"] == [tool]
    assert [each["role"] for each in saved["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat("2 + 2?\n", run, *echo, "--system", "Be brief.").stdout.startswith("system=Be brief.\n\n")


def test_two_models_have_labels_and_histories_of_their_own(echo: list[str]) -> None:
    result = chat("a\nb\n", "first", "second", *echo)
    said = "user=a / assistant=user=a / user=b"
    assert result.stdout == "".join(f"{name}:\n{text}\n" for text in ("user=a", said) for name in ("first", "second"))


def test_ctrl_c_stops_an_answer_and_what_there_is_of_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, echo: list[str], tmp_path: Path
) -> None:
    def interrupted(self: Engine, prompt: Prompt) -> Iterator[Completion]:
        yield Completion("half", "")
        signal.raise_signal(signal.SIGINT)
        yield Completion("half an answer", "stop")

    monkeypatch.setattr(Engine, "stream", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = chat(f"a\n/save {tmp_path / 'talk.jsonl'}\n", "model", *echo)
    assert result.stdout == "half\n"
    assert "stopped" in result.stderr
    assert [each["content"] for each in json.loads((tmp_path / "talk.jsonl").read_text())["messages"]] == ["a", "half"]
    assert signal.getsignal(signal.SIGINT) is before


def test_columns_and_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    terminal = Terminal()
    terminal.interactive = True
    monkeypatch.setattr("swiftplug.chat.terminal._without_echo", nullcontext)
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)

    def pieces(*texts: str) -> Callable[[], Iterator[Completion]]:
        return lambda: (Completion(text, "") for text in texts)

    both = [pieces("你", "你好 👩‍🔬")(), pieces("a", "a\x1b[31m", "a\x1b[31mb")()]
    *_, last = terminal.show(["one", "two"], both)
    assert [each.text for each in last] == ["你好 👩‍🔬", "a\x1b[31mb"]
    assert isinstance(terminal.console.file, io.StringIO)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.console.file.getvalue()).splitlines()[-2:]
    assert shown[0].split() == ["one", "two"]
    assert shown[1].split() == ["你好", "👩‍🔬", "a␛[31mb"]


def test_models_side_by_side_keep_the_same_turns_whatever_stops_an_answer(
    monkeypatch: pytest.MonkeyPatch, echo: list[str], tmp_path: Path
) -> None:
    """The first model answers; the second is stopped before it has begun, or fails."""
    calls: list[str] = []

    def stream(self: Engine, prompt: Prompt) -> Iterator[Completion]:
        calls.append(str(prompt.messages[-1]["content"]))
        number = len(calls)
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        if number == 6:
            raise UserError("it fails")
        yield Completion(f"answer {number}", "stop")

    monkeypatch.setattr(Engine, "stream", stream)
    speakers = [
        Speaker(load_model_config(name, {"engine": "echo", "plugins.files": [echo[-1]]}, []), None) for name in "ab"
    ]
    terminal = Terminal()
    lines = iter(["one", "/regenerate", "/regenerate", f"/save {tmp_path / 'talk.jsonl'}", "/exit"])
    monkeypatch.setattr(terminal, "read", lambda: next(lines))
    terminal.interactive = True
    terminal.console.width = 60  # one below the other
    monkeypatch.setattr("swiftplug.chat.terminal._without_echo", nullcontext)
    Talk(speakers, terminal).run()
    assert calls == ["one"] * 6
    rows = [json.loads(line)["messages"] for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [[each["content"] for each in messages] for messages in rows] == [["one", "answer 3"], ["one", "answer 4"]]

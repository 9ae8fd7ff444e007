"""Candidates of several turns: what the environment answers is in the context, and only what the model drew trains."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from swiftplug.builtin.engines.transformers import TransformersEngine
from swiftplug.cli.main import app
from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.sampling.rows import Row
from swiftplug.training.online.episodes import Environments
from swiftplug.training.online.record import DrawnCandidate
from swiftplug.training.setup import set_up
from swiftplug.training.task_loss import TaskLossComputer

# Ends of turns, so that a model of random weights has some: a token of 33 in 259.
ENDS = [2, *range(20, 52)]

ENVIRONMENTS = '''
from swiftplug.plugin import Environment, Unscored, register_environment, register_orm

class Counts(Environment):
    """Asks for another turn, so many times."""

    def __init__(self, turns: int = 2, length: int = 1):
        self.turns, self.length, self.seen = turns, length, []

    def step(self, messages):
        self.seen.append(messages)
        if len(self.seen) > self.turns:
            return None
        return [{"role": "tool", "content": f"{len(self.seen)}" * self.length}]

@register_environment("counts")
class Rewarded(Counts):
    """Begins with the row's hint, and rewards by the length of the answers."""

    def reset(self, row):
        self.prompt = [*row.messages]
        return [{"role": "user", "content": row["hint"]}]

    def reward(self):
        if not self.seen:
            return Unscored("it never ended a turn")
        assert self.seen[-1][:1] == self.prompt and self.seen[-1][-1]["role"] == "assistant", self.seen
        return float(sum(len(each["content"]) for each in self.seen[-1] if each["role"] == "assistant"))

register_environment("silent", Counts)

@register_environment("raises")
class Raises(Rewarded):
    def step(self, messages):
        raise RuntimeError("the sandbox is gone")

@register_environment("hangs")
class Hangs(Rewarded):
    def step(self, messages):
        while True:
            pass

@register_environment("differs")
class Differs(Rewarded):
    number = 0

    def reset(self, row):
        Differs.number += 1
        return [{"role": "user", "content": str(Differs.number)}]

@register_environment("returns")
class Returns(Rewarded):
    def __init__(self, what: dict | list | str | float = "text", reward: float | str = 0.0):
        super().__init__()
        self.what, self.given = what, reward

    def step(self, messages):
        return self.what

    def reward(self):
        return self.given

@register_orm("conversation")
def conversation(infer_requests, ground_truths):
    """The number of messages."""
    return [float(len(request.messages)) for request in infer_requests]
'''


@pytest.fixture(scope="session")
def ending_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with more tokens that end a turn."""
    folder = tmp_path_factory.mktemp("ending") / "tiny"
    folder.mkdir()
    for file in tiny_model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": ENDS}))
    return folder


@pytest.fixture
def options(ending_model_dir: Path, write_jsonl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a run of two steps with eight candidates to two prompts each."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{number} + 4?", "answer": str(number + 4), "hint": "Think."} for number in range(8)]
    Path("environments.py").write_text(ENVIRONMENTS, encoding="utf-8")
    training = {"per_device_train_batch_size": 8, "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    return [
        *("train", "--task=grpo", f"--model={ending_model_dir}", f"--dataset={write_jsonl(rows)}"),
        *("--plugin=environments.py", "--output-dir=run", "--num-return-sequences=4", "--max-new-tokens=30"),
        *(f"--set=training.{name}={value}" for name, value in training.items()),
    ]


def command(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def candidates(run: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "candidates.jsonl").read_text().splitlines()]


def log(run: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


class Seen:
    """What the engine drew, by its prompts' ids, and the rows of the batches that trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: dict[str, tuple[list[int], list[list[int]]]] = {}
        self.rows: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        draw, compute = TransformersEngine.draw, TaskLossComputer.__call__

        def drawing(engine: Any, prompts: Any, sampling: Any) -> Iterator[Any]:
            asked = {prompt.id: list(prompt.ids) for prompt in prompts}
            for answered in draw(engine, prompts, sampling):
                assert answered.id not in self.drawn
                assert len(answered.completions) == sampling.num_return_sequences
                self.drawn[answered.id] = asked[answered.id], [[*it.ids] for it in answered.completions]
                yield answered

        def computing(computer: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            for ids, labels, length in zip(batch["input_ids"], batch["labels"], batch["length"], strict=True):
                self.rows.add((tuple(ids[:length].tolist()), tuple(labels[:length].tolist())))
            return compute(computer, model, batch, *args, **kwargs)

        monkeypatch.setattr(TransformersEngine, "draw", drawing)
        monkeypatch.setattr(TaskLossComputer, "__call__", computing)

    def episodes(self) -> Iterator[list[tuple[list[int], list[int]]]]:
        """Of each candidate its turns: the tokens before each and those drawn."""
        for first, (prompt, completions) in self.drawn.items():
            drawing, rest = first.split("/", 1)
            if rest.count("/") > 1:
                continue
            for index, ids in enumerate(completions):
                turns, turn = [(prompt, ids)], 1
                while (name := f"{drawing}/{turn}/{rest}/{index}") in self.drawn:
                    before, [drawn] = self.drawn[name]
                    turns.append((before, drawn))
                    turn += 1
                yield turns


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def test_only_what_the_model_drew_trains_and_the_next_turn_continues_it(
    options: list[str], seen: Seen, ending_model_dir: Path
) -> None:
    printed = command(*options, "--environment=counts")
    assert "plugin: environment 'counts' of environments.py" in printed
    assert re.search(r"^step 2/2  reward .*  turns [123]\.\d  ", printed, re.M)
    tokenizer = AutoTokenizer.from_pretrained(ending_model_dir)
    expected, counts = set(), []
    for episode in seen.episodes():
        ids, labels = [*episode[0][0]], [-100] * len(episode[0][0])
        for turn, (before, drawn) in enumerate(episode):
            if turn:
                reply = f"\n<|im_start|>tool\n{turn}<|im_end|>\n<|im_start|>assistant\n"
                glue = tokenizer(reply, add_special_tokens=False)["input_ids"]
                ids, labels = [*ids, *glue], [*labels, *[-100] * len(glue)]
                assert ids == before  # the very tokens, although ends of turns differ and bytes are no characters
            ids, labels = [*ids, *drawn], [*labels, *drawn]
        assert sum(label >= 0 for label in labels) <= 30
        expected.add((tuple(ids), tuple(labels)))
        counts.append(len(episode))
    assert len(counts) == 16 and max(counts) == 3
    # A group of equal rewards does not train, and neither does a candidate without a reward.
    assert seen.rows <= expected and len(seen.rows) > 8
    assert any(len([it for it in labels if it == -100]) > len(labels) / 2 for _, labels in seen.rows)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "0 + 4?"}, {"role": "user", "content": "Think."}], add_generation_prompt=True
    )
    prompts = [episode[0][0] for episode in seen.episodes()]
    assert all(len(prompt) == len(asked["input_ids"]) for prompt in prompts)
    first = tokenizer.apply_chat_template(
        [{"role": "user", "content": candidates()[0]["messages"][0]["content"]}, {"role": "user", "content": "Think."}],
        add_generation_prompt=True,
    )
    assert first["input_ids"] in prompts


def test_conversations_are_kept_scored_and_logged(options: list[str]) -> None:
    command(*options, "--environment=counts", "--set=environment.weight=2", "--orm=conversation")
    kept = candidates()
    assert len(kept) == 16
    scored = [each for each in kept if "counts" in each["scores"]]
    assert 8 < len(scored) < 17
    for each in kept:
        roles = [message["role"] for message in each["messages"]]
        answers = [message["content"] for message in each["messages"] if message["role"] == "assistant"]
        assert roles == ["user", "user", "assistant", *["tool", "assistant"] * (len(answers) - 1)]
        assert [it["content"] for it in each["messages"] if it["role"] == "tool"] == ["1", "2"][: len(answers) - 1]
        assert each["scores"]["conversation"] == len(roles)
        if each not in scored:  # its only turn was cut off
            assert (each["reward"], each["finish_reason"], len(answers)) == (None, "length", 1)
            continue
        finished = answers if each["finish_reason"] == "stop" else answers[:-1]
        # One that was cut off for want of tokens has ended its last turn too.
        assert each["scores"]["counts"] in {sum(map(len, finished)), sum(map(len, answers))}
        assert each["reward"] == 2 * each["scores"]["counts"] + each["scores"]["conversation"]
    logged = log()[0]
    first = [each for each in kept if each["step"] == 1]
    turns = [sum(message["role"] == "assistant" for message in each["messages"]) for each in first]
    assert logged["turns"] == pytest.approx(sum(turns) / 8)
    given = [each["scores"]["counts"] for each in first if "counts" in each["scores"]]
    assert logged["rewards/counts"] == pytest.approx(sum(given) / len(given))
    assert logged["missing_rewards"] == pytest.approx(1 - len(given) / 8)


def test_a_conversation_that_the_model_cannot_read_whole_is_cut_off(options: list[str], seen: Seen) -> None:
    # Each reply has 240 tokens, and the model reads 512.
    command(
        *options,
        "--environment=silent",
        "--set=environment.turns=5",
        "--set=environment.length=240",
        "--orm=conversation",
    )
    lengths = [len(before) + len(drawn) for episode in seen.episodes() for before, drawn in episode]
    assert 300 < max(lengths) <= 512
    answers = [sum(it["role"] == "assistant" for it in each["messages"]) for each in candidates()]
    assert set(answers) == {1, 2}
    assert {each["finish_reason"] for each in candidates()} == {"length"}


def test_evaluation_plays_episodes_too(options: list[str]) -> None:
    evaluation = ["--eval-dataset=data.jsonl#3", "--set=training.eval_strategy=steps", "--set=training.eval_steps=2"]
    command(*options, "--environment=counts", *evaluation)
    [evaluated] = [line for line in log() if "eval_reward" in line]
    assert 1 < evaluated["eval_turns"] <= 3
    assert evaluated["eval_rewards/counts"] == evaluated["eval_reward"] > 0
    best = (*options, "--environment=counts", *evaluation, "--overwrite", "--dry-run")
    for name in ("rewards/counts", "turns"):
        command(*best, f"--set=training.metric_for_best_model={name}")


def test_a_call_in_the_tools_format_of_the_run_is_answered_in_it(options: list[str], ending_model_dir: Path) -> None:
    given = {"task": "grpo", "model": str(ending_model_dir), "dataset": ["data.jsonl"], "tools": "hermes"}
    config = load_train_config(None, {**given, "environment": "calculator", "orm": ["math"]}, []).config
    config.training["per_device_train_batch_size"] = config.num_return_sequences
    args = set_up(config)
    environments = Environments(args, args.load_chat())
    tool = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
    row = Row("id", "data.jsonl:1", [{"role": "user", "content": "12 * 7?"}], tools=[tool])
    [[episode]] = environments.begin([row], 1)
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12 * 7"}}\n</tool_call>'
    episode.candidate = DrawnCandidate(0, call, "stop", prompt_ids=[7], ids=[8, 2], drawn=[True] * 2, logps=[-1.0] * 2)
    [(continued, prompt)] = environments.answer([episode], "0/1")
    assert continued is episode and prompt.id == "0/1/0/id/0"
    assert episode.candidate.turns[1:] == [{"role": "tool", "name": "calculator", "content": "84"}]
    assert prompt.messages[-1] == {"role": "user", "content": "<tool_response>\n84\n</tool_response>"}
    assert prompt.max_new_tokens == config.max_new_tokens - 2 and prompt.ids is not None
    written = "\n<|im_start|>user\n<tool_response>\n84\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids == [7, 8, 2, *args.load_tokenizer()(written, add_special_tokens=False)["input_ids"]]
    assert episode.candidate.ids == prompt.ids[1:]
    assert episode.candidate.logps == [-1.0, -1.0] + [0.0] * (len(prompt.ids) - 3)
    assert episode.candidate.trains == [True, True] + [False] * (len(prompt.ids) - 3)


def test_the_page_shows_the_turns(options: list[str], browser: Any) -> None:
    command(*options, "--environment=counts", "--orm=conversation")
    last = [each for each in candidates() if each["step"] == 2]
    browser.open(f"{Path('run/report.html').resolve().as_uri()}#step=2&row=0")
    texts = browser.ask(
        "[...document.querySelectorAll('.card')].map((card) => [...card.querySelectorAll('.text')]"
        ".map((node) => node.textContent))"
    )
    assert texts == [[it["content"] or "empty" for it in each["messages"][2:]] for each in last[:4]]
    asked = browser.ask("[...document.querySelectorAll('.messages .text')].map((node) => node.textContent)")
    assert asked == [it["content"] for it in last[0]["messages"][:2]]
    assert {each["turns"] for each in last} <= {1, 2, 3} and any("counts" in it for it in browser.texts(".card"))


def test_a_template_without_the_role_tool_gets_the_results_from_the_user(options: list[str]) -> None:
    Path("strict.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('No tools.') }}{% endif %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    command(*options, "--environment=counts", "--template=strict.jinja", "--set=training.max_steps=1")
    several = [each["messages"] for each in candidates() if each["turns"] > 1]
    assert several and all(messages[3]["role"] == "user" for messages in several)


STOPPING = """
import os
from transformers import TrainerCallback
from swiftplug.plugin import register_callback

@register_callback("stopping")
class Stopping(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(os.environ.get("STOP_AT", 0)):
            raise KeyboardInterrupt
"""


def test_a_run_that_is_resumed_plays_the_same_episodes(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("stopping.py").write_text(STOPPING)
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.001}
    given = [*options, "--environment=counts", "--plugin=stopping.py", "--callback=stopping"]
    given += [f"--set=training.{name}={value}" for name, value in training.items()]
    command(*(each.replace("--output-dir=run", "--output-dir=unbroken") for each in given))
    monkeypatch.setenv("STOP_AT", "3")
    CliRunner().invoke(app, given)
    assert Path("run/checkpoint-2").exists() and not Path("run/model.safetensors").exists()
    monkeypatch.delenv("STOP_AT")
    command("train", "run", "--resume")
    assert Path("run/candidates.jsonl").read_bytes() == Path("unbroken/candidates.jsonl").read_bytes()
    expected, found = (load_file(Path(run, "model.safetensors")) for run in ("unbroken", "run"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


REFUSED: list[tuple[list[str], str]] = [
    (
        ["--environment=raises"],
        r"environment 'raises' of environments.py raised RuntimeError: the sandbox is gone \(env",
    ),
    (
        ["--environment=hangs", "--set=score_timeout=1"],
        r"environment 'hangs' of environments.py did not answer for \d candidates within 1 s \(score_timeout\)",
    ),
    (["--environment=differs"], r"begins candidate 1 of .*data.jsonl:\d+ otherwise than candidate 0"),
    (
        ["--environment=silent"],
        "task grpo needs a reward, which environment 'silent' .* does not give: name one with --orm",
    ),
    (["--environment=returns"], r"returned 'text', expected a list of messages, or None for none \(candidate \d of "),
    (["--environment=returns", "--set=environment.what=[]"], r"returned \[\], expected a list of messages, or None"),
    (["--environment=returns", "--set=environment.what=[1]"], "returned 1 among messages, expected a dict of role and"),
    (
        ["--environment=returns", "--set=environment.what=[{role: assistant, content: x}]"],
        "returned an assistant's message last, which the model's own turn would follow",
    ),
    (["--environment=counts", "--set=environment.turn=3"], "takes no option 'turn'; did you mean 'turns'"),
    (["--environment=count"], "--environment: there is no environment 'count'; did you mean 'counts'"),
    (["--environment=counts", "--set=environment.weight=-1"], "environment.weight"),
    (
        ["--environment=counts", "--template=forgets.jinja"],
        "environment 'counts' .* cannot act in this run: the chat template writes an answer otherwise once the "
        "conversation goes on; name another one with data.template",
    ),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_cannot_be_is_one_line(options: list[str], given: list[str], words: str) -> None:
    Path("forgets.jinja").write_text(
        "{% for message in messages %}{% if loop.last or message.role != 'assistant' %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    done = CliRunner().invoke(app, [*options, *given])
    assert isinstance(done.exception, UserError), done.output
    assert "\n" not in str(done.exception)
    assert re.search(words, str(done.exception)), str(done.exception)
    assert not Path("run", "swiftplug.json").exists()


def test_it_acts_in_online_tasks_alone(options: list[str]) -> None:
    done = CliRunner().invoke(app, [*options[:4], "--plugin=environments.py", "--task=sft", "--environment=counts"])
    assert str(done.exception).startswith("--environment: an environment does not act in task sft, but in grpo")

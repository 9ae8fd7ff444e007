"""What comes before the model of a run that draws: its prompts, as `sample` reads them, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer
from transformers.utils import logging

from swiftplug.config.load import load_sample_config, load_train_config
from swiftplug.data.prepare import PreparedData
from swiftplug.errors import UserError
from swiftplug.preview.preview import preview
from swiftplug.runs.console import RunProgress
from swiftplug.runs.folder import begin_record
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.intake import read_inputs
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.scoring import resolve_scorers
from swiftplug.training.checkpoint import check_same_run
from swiftplug.training.setup import plan_facts, read_data, set_up

TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]


def question(text: str, answer: str = "", **columns: Any) -> dict[str, Any]:
    answered = [{"role": "assistant", "content": answer}] if answer else []
    return {"messages": [{"role": "user", "content": text}, *answered], **columns}


ROWS = [
    question("1 + 1?", r"\boxed{2}"),
    question("1 + 1?", r"\boxed{2}"),
    question("  ", r"\boxed{2}"),
    question("1 + 3?", level=3),
    {"text": "abc"},
    {"prompt": "2 + 2?", "reference": "4", "chat_template_kwargs": {"enable_thinking": False}},
    question("Add 1 and 2", r"\boxed{3}", tools=TOOLS),
    question("A long question: " + "1 + " * 40 + "1?", r"\boxed{41}"),
]


@pytest.fixture
def options(tiny_model_dir: Path, write_jsonl: Any, tmp_path: Path) -> dict[str, Any]:
    """A run of GRPO."""
    data, folder = str(write_jsonl(ROWS)), str(tmp_path / "run")
    return {"task": "grpo", "model": str(tiny_model_dir), "dataset": [data], "output_dir": folder, "orm": ["math"]}


def read(options: dict[str, Any], *sets: str) -> PreparedData:
    args = set_up(load_train_config(None, options, sets).config)
    with RunProgress(Console(quiet=True)) as progress:
        return read_data(args, progress)


def reading(tokens: int, model: Path, tmp_path: Path) -> Path:
    """A copy of a model, said to read so many tokens."""
    folder = shutil.copytree(model, tmp_path / "model")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), key: tokens}))
    return folder


def test_prompts_are_those_that_sample_reads(options: dict[str, Any], tmp_path: Path) -> None:
    options["model"] = str(reading(2000, options["model"], tmp_path))
    given = {name: options[name] for name in ("model", "dataset", "orm", "output_dir")} | {"tools": "hermes"}
    config = load_sample_config(None, given, []).config
    plugins = resolve_plugins(config)
    ledger = Ledger(tmp_path / "ledger", is_new=True)
    read_inputs(ledger, config, plugins, resolve_scorers(config, plugins))
    sampled = [row for row in ledger.rows(range(ledger.count_rows())) if not row.problem]
    prompts = read({**options, "tools": "hermes"}).prompts
    assert len(prompts) == len(sampled) == 5
    for prompt, row in zip(prompts, sampled, strict=True):
        for name in ("id", "origin", "prompt", "tools", "columns", "reference"):
            assert getattr(prompt, name) == getattr(row, name)


def test_prompts_have_the_length_of_the_template_and_long_ones_are_left_out(
    options: dict[str, Any], tiny_model_dir: Path
) -> None:
    data = read(options, "data.max_length=100")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    lengths = [
        len(tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True)["input_ids"]) for row in data.prompts
    ]
    assert list(data.train["length"]) == lengths
    assert list(data.train["row"]) == [0, 1, 2, 3]
    report = data.report.train
    assert (report.rows, report.kept, report.tokens, report.longest) == (8, 4, sum(lengths), max(lengths))
    whole = len(tokenizer.apply_chat_template(ROWS[7]["messages"][:1], add_generation_prompt=True)["input_ids"])
    file = options["dataset"][0]
    assert {reason: dropped.examples for reason, dropped in report.dropped.items()} == {
        "the question is empty": [f"{file}:3"],
        "no question": [f"{file}:5 (a row of plain text)"],
        "longer than max_length": [f"{file}:8 ({whole} tokens, max_length is 100)"],
        "no reference for math": [f"{file}:4"],
    }
    # What resuming compares is what other tasks record of the same rows.
    answers = read({**options, "task": "sft", "orm": []})
    assert data.report.fingerprints() == answers.report.fingerprints()


def test_prompts_that_the_model_cannot_read_are_left_out(
    options: dict[str, Any], tiny_model_dir: Path, write_jsonl: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = reading(100, tiny_model_dir, tmp_path)
    logging.enable_propagation()
    report = read({**options, "model": str(folder)}).report.train
    [example] = report.dropped["longer than the model reads"].examples
    assert re.fullmatch(rf"{options['dataset'][0]}:8 \(\d+ tokens, it reads at most 100\)", example)
    assert report.longest < 100
    assert not caplog.records
    with pytest.raises(UserError, match=r"none usable: longer than the model reads .*it reads at most 100"):
        read({**options, "model": str(folder), "dataset": [str(write_jsonl(ROWS[7:], "long.jsonl"))]})


def test_rows_to_evaluate_on_are_held_out(options: dict[str, Any]) -> None:
    data = read(options, "data.val_size=3", "data.columns={level: grade}", "seed=1")
    assert data.report.eval is not None and data.eval is not None
    assert (data.report.train.rows, data.report.eval.rows) == (5, 3)
    assert [len(data.train), len(data.eval)] == [len(data.prompts), len(data.eval_prompts)]
    origins = {row.origin for row in data.prompts}
    assert not origins.intersection(row.origin for row in data.eval_prompts)


def test_scorers_that_cannot_score_the_rows_are_refused(options: dict[str, Any], write_jsonl: Any) -> None:
    rows = str(write_jsonl([question("1 + 1?")], "open.jsonl"))
    with pytest.raises(UserError, match=r"^orm 'math' of swiftplug .* needs references, and no row has one"):
        read({**options, "dataset": [rows]})
    assert len(read({**options, "dataset": [rows], "orm": ["format"]}).prompts) == 1
    wrong = str(write_jsonl([question("1 + 1?", "So it is\n#### 2")], "hashes.jsonl"))
    with pytest.raises(UserError, match=r"finds no reference right as an answer.*use --orm gsm8k"):
        read({**options, "dataset": [wrong], "orm": ["math"]})
    with pytest.raises(UserError, match=r"none usable: the question is empty \(1 row\): .*empty.jsonl:1$"):
        read({**options, "dataset": [str(write_jsonl([question(" ", "2")], "empty.jsonl"))]})
    with pytest.raises(UserError, match=r"max_length: 5 is shorter than every .* shortest has \d+ tokens$"):
        read(options, "data.max_length=5")


@pytest.mark.parametrize(
    ("changed", "sets", "message"),
    [
        ({"orm": []}, [], "task grpo needs a reward: name one with --orm"),
        ({"engine": "openai"}, [], "--engine: openai cannot draw from a model in training, .* expected transformers"),
        ({"engine": "none"}, [], "--engine: none cannot draw from a model in training"),
        ({"loss": "focal"}, [], "--loss: a loss does not act in task grpo, but in pt, sft"),
        ({"metrics": ["acc"]}, [], "--metric: a metric does not act in task grpo, but in "),
        ({"temperature": 0.0}, [], "--temperature: found 0, where all answers are the same"),
        ({"num_return_sequences": 1}, [], "--num-return-sequences: task grpo compares .* found 1, expected 2 or more"),
        (
            {"num_return_sequences": 12},
            ["training.gradient_accumulation_steps=5"],
            r"a step takes 8 x 5 = 40 answers .* num_return_sequences \(12\); .*gradient_accumulation_steps=6$",
        ),
        ({}, ["data.packing=true"], "data.packing: task grpo keeps each row apart"),
        ({}, ["data.too_long=split"], "--set data.too_long=split: task grpo takes each prompt whole; expected drop"),
        (
            {},
            ["data.group_by_length=false"],
            "--set data.group_by_length=false: task grpo sorts the candidates",
        ),
        ({"task": "rloo"}, ["reference=precompute"], "--set reference=precompute: task rloo draws its answers while"),
        ({}, ["reference=precompute"], "--set reference=precompute: task grpo needs no reference model"),
        ({}, ["task.kl=reward"], "--task: option 'kl': the divergence has no weight; give option 'beta' one"),
        ({}, ["task.loss=cispo", "task.epsilon=0.1"], "--task: option 'epsilon': loss cispo clips weights from above"),
        ({"task": "sft"}, [], "--orm: an orm does not act in task sft, but in .*grpo"),
        ({"task": "sft", "orm": [], "engine": "vllm"}, [], "--engine: an engine does not act in task sft, but in "),
        ({"task": "dpo", "orm": [], "temperature": 0.5}, [], "--temperature: does not act in task dpo, but in .*grpo"),
        ({"task": "sft", "orm": []}, ["score_timeout=5"], "--set score_timeout=5: does not act in task sft, but in "),
        ({"task": "sft", "orm": []}, ["engine.batch_size=5"], "--set engine.batch_size=5: an engine does not act in"),
    ],
)
def test_settings_are_refused_before_the_data_is_read(
    options: dict[str, Any], changed: dict[str, Any], sets: list[str], message: str
) -> None:
    config = load_train_config(None, {**options, "dataset": ["nothing.jsonl"], **changed}, sets).config
    with pytest.raises(UserError, match=f"^{message}"):
        set_up(config)


def test_what_has_no_effect_is_said(options: dict[str, Any]) -> None:
    assert set_up(load_train_config(None, options, []).config).notes == []
    sets = ["data.num_proc=2", "data.cache_dir=cache", "training.per_device_eval_batch_size=4", "prm_reduce=mean"]
    sets += ["training.dataloader_drop_last=true", "training.eval_accumulation_steps=2"]
    notes = set_up(load_train_config(None, options, sets).config).notes
    assert sorted(note.partition(": not in force, as ")[0] for note in notes) == sorted(
        each.partition("=")[0] for each in sets
    )
    assert len(read(options, "training.dataloader_drop_last=true").prompts) == 5  # fewer than a micro-batch


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", r"has no estimator that defines __call__\(rewards, drawn\), expected an instance of a subclass"),
        ("estimator = Half", "has <class '.*Half'> as its estimator, expected an instance"),
        ("estimator = Half(); mean = 'token'", r"has 'token' as its mean; did you mean 'tokens'\?"),
    ],
)
def test_a_policy_that_lacks_something_is_refused_before_the_data_is_read(
    options: dict[str, Any], body: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "policies.py"
    half = "class Half(Estimator):\n    def __call__(self, rewards, drawn): return rewards - 0.5\n"
    own = f'@register_task("own")\nclass Own(PolicyTask):\n    """One of a file."""\n    {body}\n'
    file.write_text(f"from swiftplug.plugin import Estimator, PolicyTask, register_task\n{half}{own}")
    given = {**options, "task": "own", "dataset": ["nothing.jsonl"], "plugins.files": [str(file)]}
    with pytest.raises(UserError, match=f"^task 'own' of .*policies.py {message}"):
        set_up(load_train_config(None, given, []).config)


def test_a_run_is_resumed_with_the_answers_of_its_steps_given_or_not(options: dict[str, Any], tmp_path: Path) -> None:
    sets = ["task.num_iterations=2", "num_return_sequences=4"]
    args = set_up(load_train_config(None, options, sets).config)
    (tmp_path / "run/checkpoint-3").mkdir(parents=True)
    begin_record(tmp_path / "run", args.config, args.plugins.all(), resumed=False)
    check_same_run(tmp_path / "run", args, allow_changed_plugins=False)
    assert args.notes == []
    given = ["training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=2"]
    args = set_up(load_train_config(None, options, [*sets, *given]).config)
    with pytest.raises(UserError, match=r"checkpoint-3 is in the middle .* 8 x 4 accumulated .* found 16 x 2 accumul"):
        check_same_run(tmp_path / "run", args, allow_changed_plugins=False)
    (tmp_path / "run/checkpoint-3").rmdir()
    check_same_run(tmp_path / "run", args, allow_changed_plugins=False)
    assert len(args.notes) == 1 and "a step takes 32 rows as before" in args.notes[0]


def test_a_preview_shows_prompts_as_the_engine_gets_them(options: dict[str, Any], tiny_model_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    config = load_train_config(None, options, ["data.max_length=100"]).config
    shown = json.loads(preview(config, rows=8, format="json", color=False))
    for index in (0, 3):
        prompt = tokenizer.apply_chat_template(ROWS[index]["messages"][:1], add_generation_prompt=True)["input_ids"]
        assert (shown[index]["input_ids"], shown[index]["dropped"]) == (prompt, None)
        assert {*shown[index]["weights"]} == {0}
    assert [row["dropped"] for row in shown][2:5:2] == ["the question is empty", "no question: a row of plain text"]
    assert shown[7]["dropped"].startswith("longer than max_length: ")


def test_the_plan_counts_prompts_and_candidates(options: dict[str, Any]) -> None:
    chosen = {**options, "orm": ["math", "format"], "num_return_sequences": 4}
    sets = ["orm.math.weight=2", "training.gradient_accumulation_steps=2", "task.num_iterations=3"]
    args = set_up(load_train_config(None, chosen, sets).config)
    with RunProgress(Console(quiet=True)) as progress:
        facts = [*plan_facts(args, read_data(args, progress))]
    shown = [text for name, text in facts if name == "orm"]
    assert [text.partition("  ")[0] for text in shown] == ["math", "format"] and shown[0].endswith("weight=2.0")
    named = dict(facts)
    assert named["batch"] == "8 x 2 accumulated x 1 process = 16: 4 prompts per step, 4 candidates per prompt"
    # Five prompts are two drawings, of three steps each.
    assert named["steps"] == "18 (6 per epoch, num_train_epochs 3)"


@pytest.mark.parametrize("group", [3, 8])
def test_a_step_has_as_many_prompts_as_others_have_rows(group: int, options: dict[str, Any]) -> None:
    sets = [f"num_return_sequences={group}"]
    arguments = set_up(load_train_config(None, options, sets).config).training_args
    assert arguments.gradient_accumulation_steps == group
    given = set_up(
        load_train_config(None, options, [*sets, f"training.per_device_train_batch_size={2 * group}"]).config
    )
    assert given.training_args.gradient_accumulation_steps == 1

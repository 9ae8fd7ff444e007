"""`swiftplug evaluate`: the numbers of training's own evaluation, rewards with their errors, models side by side."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.errors import UserError
from swiftplug.evaluation import model as evaluated
from swiftplug.sampling.ledger import Ledger
from swiftplug.sampling.loop import SampleLoop
from swiftplug.training.progress import BOOKKEEPING

DICE = Path(__file__).parents[1] / "sampling" / "dice.py"

Evaluate = Callable[..., Any]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """Run `swiftplug evaluate` in the test's folder; returns what --json prints, or all that is printed without it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, form: str = "json") -> Any:
        words = ["evaluate", *map(str, arguments), *(["--json"] if form == "json" else [])]
        result = CliRunner().invoke(app, words, catch_exceptions=False, standalone_mode=False)
        if isinstance(result.exception, UserError):
            raise result.exception
        return json.loads(result.stdout) if form == "json" else result.stdout

    return run


@pytest.mark.parametrize(
    ("task", "sets"),
    [
        ("sft", ["tuner.r=4", "loss_scale=last_round", "metrics=[acc, {name: exact_match, max_new_tokens: 4}]"]),
        ("dpo", ["tuner.r=4"]),
        ("seq_cls", ["metrics=[f1]"]),
    ],
    ids=["sft", "dpo", "seq_cls"],
)
def test_the_figures_are_those_that_training_logs(
    run: Any, evaluate: Evaluate, write_jsonl: Any, pair_file: Path, chat_file: Path, task: str, sets: list[str]
) -> None:
    labelled = write_jsonl([{"text": f"{number} is it", "label": "abc"[number % 3]} for number in range(16)], "l.jsonl")
    data = {"seq_cls": labelled, "sft": chat_file}.get(task, pair_file)
    options = {"tuner": "lora"} if sets and task != "seq_cls" else {}
    steps = ["training.max_steps=2", "training.learning_rate=0.01", "training.save_strategy=steps"]
    halves = ["training.eval_steps=1", "training.save_steps=1", "training.per_device_eval_batch_size=3"]
    # Classes that the rows to evaluate on do not all have keep the numbers that they have in the model.
    eval_dataset = f"{data}#{2 if task == 'seq_cls' else 7}"
    given = {"task": task, "dataset": [f"{data}#16"], "eval_dataset": [eval_dataset], **options}
    trained = run("r", [*steps, *halves, *sets], **given)
    logged = [json.loads(line) for line in (trained.run_dir / "log.jsonl").read_text().splitlines()]
    expected = [
        {name.removeprefix("eval_"): value for name, value in entry.items() if name not in {"step", *BOOKKEEPING}}
        for entry in logged
        if "eval_loss" in entry
    ]
    results = evaluate("r/checkpoint-1", "r", "--dataset", eval_dataset)
    assert [model["metrics"] for model in results["models"]] == expected
    assert [model["label"] for model in results["models"]] == ["r/checkpoint-1", "r"]
    assert expected[0] != expected[1]
    assert "loss" in expected[0]
    assert results["models"][0]["rows"]["used"] == (2 if task == "seq_cls" else 7)
    assert {"swiftplug:full", "swiftplug:lora"} & {plugin["name"] for plugin in results["models"][0]["plugins"]}
    assert json.loads(Path("runs/evaluate/evaluation.json").read_text()) == results


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_base_model_that_was_moved_is_found_or_named(
    run: Any, evaluate: Evaluate, tiny_model_dir: Path, chat_file: Path, tmp_path: Path, tuner: str
) -> None:
    base = shutil.copytree(tiny_model_dir, tmp_path / "a" / "base")
    run("a/r", ["training.max_steps=1", "training.learning_rate=0.01"], model=str(base), tuner=tuner)

    def figures(name: str) -> Any:
        return evaluate(name, "--dataset", f"{chat_file}#4")["models"][0]["metrics"]

    expected = figures("a/r")
    (tmp_path / "a").rename(tmp_path / "b")  # together: it is found
    assert figures("b/r") == expected
    (tmp_path / "b" / "base").rename(tmp_path / "elsewhere")
    if tuner == "full":  # it needs none
        assert figures("b/r") == expected
        return
    with pytest.raises(UserError) as raised:
        figures("b/r")
    assert str(raised.value) == (
        f"b/r: its base model is not at {tmp_path}/a/base or {tmp_path}/b/base; if it was moved, write its new folder "
        "into b/r/swiftplug.json as base_model.name"
    )


@pytest.fixture
def dice(evaluate: Evaluate, tiny_model_dir: Path, tmp_path: Path) -> Evaluate:
    """Evaluate two models, one of which draws from the half of the numbers, on 16 questions."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}: a die?"}, {"role": "assistant", "content": f"{n % 4}"}]}
        for n in range(16)
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "two"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
    plugin = DICE.read_text() + (
        "\n@register_engine('by_model')\nclass ByModel(Dice):\n    def open(self, args, sampling):\n"
        "        super().open(args, sampling)\n        self.sides = 4 if args.model.name.endswith('one') else 2\n"
    )
    (tmp_path / "plugins_here.py").write_text(plugin)
    given = ["--plugin", "plugins_here.py", "--dataset", "q.jsonl", "--engine", "by_model", "--orm", "box"]
    return lambda *arguments, **options: evaluate(*arguments, *given, **options)


def test_rewards_have_standard_errors_and_models_are_compared_row_by_row(
    dice: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given = ["one", "two", "--prm", "halves", "--num-return-sequences", 4, "--output-dir", "e"]
    printed = dice(*given, form="table").splitlines()
    results = json.loads(Path("e/evaluation.json").read_text())
    right = {}
    for name in ("one", "two"):
        lines = [json.loads(line) for line in Path(f"e/{name}/candidates.jsonl").read_text().splitlines()]
        right[name] = np.array([line["scores"]["box"] for line in lines]).reshape(16, 4)
        assert Path(f"e/{name}/report.html").is_file()
    one, two = results["models"]
    means = right["one"].mean(axis=1)
    assert one["metrics"]["orm/box"] == pytest.approx(means.mean())
    assert one["metrics"]["pass@1"] == pytest.approx(means.mean())
    assert one["standard_errors"]["pass@1"] == pytest.approx(means.std(ddof=1) / math.sqrt(16))
    assert one["metrics"]["pass@4"] == pytest.approx(right["one"].max(axis=1).mean())
    assert one["answers"]["pass_at"]["4"] == pytest.approx(one["metrics"]["pass@4"])
    assert one["sampling"]["temperature"] == 1
    apart = right["two"].mean(axis=1) - means
    [difference] = results["differences"]
    assert (difference["of"], difference["to"]) == ("two", "one")
    assert difference["metrics"]["orm/box"] == pytest.approx(apart.mean())
    assert difference["standard_errors"]["orm/box"] == pytest.approx(apart.std(ddof=1) / math.sqrt(16))
    assert two["metrics"]["loss"] == one["metrics"]["loss"]

    at = next(index for index, line in enumerate(printed) if line.startswith("pass@1"))
    assert ["one", "two"] in [line.split() for line in printed[:at]]
    shown = [f"{model['metrics']['pass@1']:.4f}".rstrip("0").rstrip(".") for model in (one, two)]
    errors = [f"{model['standard_errors']['pass@1']:.2g}" for model in (one, two)]
    best = ["*" if apart.mean() < 0 else "", "*" if apart.mean() > 0 else ""]
    cells = [f"{value} ± {error} {mark}".strip() for value, error, mark in zip(shown, errors, best, strict=True)]
    assert " ".join(printed[at].split()) == f"pass@1 {cells[0]} {cells[1]}"
    assert " ".join(printed[at + 1].split()).startswith(f"{apart.mean():+.4f}".rstrip("0").rstrip("."))
    assert max(map(len, printed[at : at + 9])) <= 80


def test_an_interrupted_evaluation_keeps_its_answers(dice: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dice("one", "--output-dir", "whole")
    assert whole["models"][0]["sampling"]["temperature"] == 0
    score, scored = SampleLoop._score, []

    def dying(self: SampleLoop, *arguments: Any) -> None:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(score(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(SampleLoop, "_score", dying)
        with pytest.raises(ValueError, match="Expecting value"):
            dice("one", "--output-dir", "e")
    assert not Path("e/evaluation.json").exists()
    with pytest.raises(UserError, match="continue that run with --resume"):
        dice("one", "--output-dir", "e")
    scored.clear()
    monkeypatch.setattr(SampleLoop, "_score", lambda self, *them: scored.append(score(self, *them)))
    resumed = dice("one", "--output-dir", "e", "--resume")
    assert resumed["models"] == whole["models"]
    assert len(scored) == 2  # batches; the other two were scored before
    assert resumed["models"][0]["answers"]["candidates"] == 16


def test_an_evaluation_that_was_killed_while_it_read_the_rows_may_begin_again(dice: Evaluate) -> None:
    for folder in ("e/one", "e/two"):
        Path(folder).mkdir(parents=True)
    Ledger(Path("e/one/.ledger.sqlite.partial"), is_new=True).close()
    Path("e/one/.ledger.sqlite.partial-journal").touch()
    [model] = dice("one", "--output-dir", "e", "--resume")["models"]
    assert model["answers"]["candidates"] == 16
    Path("other/deep").mkdir(parents=True)
    Path("other/deep/notes.txt").touch()
    with pytest.raises(UserError, match="output_dir: other holds other files"):
        dice("one", "--output-dir", "other", "--resume")


def test_models_whose_labels_differ_only_in_punctuation_have_folders_of_their_own(dice: Evaluate) -> None:
    for name in ("a b", "a+b", "A_B", "+"):
        shutil.copytree("one", name)
    results = dice("a b", "a+b", "A_B", "+", "--output-dir", "e")
    assert [model["label"] for model in results["models"]] == ["a b", "a+b", "A_B", "+"]
    folders = sorted(path.parent.name for path in Path("e").glob("*/candidates.jsonl"))
    assert len(folders) == 4 and "model" in folders
    assert all(len((Path("e") / name / "candidates.jsonl").read_text().splitlines()) == 16 for name in folders)
    dice("two", "--output-dir", "e", "--overwrite")
    assert sorted(path.name for path in Path("e").iterdir()) == ["evaluation.json", "two"]


def test_overwriting_removes_only_answers_of_the_evaluation(dice: Evaluate) -> None:
    dice("two", "--output-dir", "e")
    shutil.copytree("e/two", "all/samples")  # as a sampling run beside others
    with pytest.raises(UserError, match="output_dir: all holds other files"):
        dice("one", "--output-dir", "all", "--overwrite")
    shutil.copytree("e/two", "e/samples")
    dice("one", "--output-dir", "e", "--overwrite")
    assert sorted(path.name for path in Path("e").iterdir()) == ["evaluation.json", "one", "samples"]


MISTAKES = [
    ("r", "r: the run has no eval_dataset; name the rows to evaluate on with --dataset"),
    ("r r/ --dataset q.jsonl", "MODEL: r/ is given twice"),
    ("unfinished --dataset q.jsonl", "unfinished: has no trained model yet"),
    ("r --dataset q.jsonl --metric akk", "--metric: there is no metric 'akk'"),
    ("r --dataset q.jsonl --orm mat", "did you mean 'math'"),
    ("r --dataset none.jsonl", "none.jsonl"),
    ("r --dataset q.jsonl --temperature 1", "--temperature: is for the answers that reward models score"),
    ("r --dataset q.jsonl --set engine.batch_size=2", "--set engine.batch_size=2: is for the answers"),
    ("r --dataset q.jsonl --set training.learning_rate=1", "does not act in an evaluation"),
    ("r --dataset q.jsonl --set training.per_device_evl_batch_size=1", "did you mean 'per_device_eval_batch_size'"),
    ("r --dataset q.jsonl --set tuner.r=1", "--set tuner.r=1: does not act in an evaluation"),
    ("r --dataset q.jsonl --set dada.max_length=1", "unknown key; did you mean 'data'"),
    ("r --dataset q.jsonl --task rm", "r: has no trained head for task rm"),
    ("r pairs --dataset q.jsonl", "r and pairs differ in their task"),
    ("r --dataset q.jsonl --output-dir r", "output_dir: r holds a run of another command"),
    ("r --dataset q.jsonl --orm math --task dpo --metric acc", "does not act in task dpo"),
    ("a/b/none --dataset q.jsonl", "a/b/none"),
]


def test_mistakes_are_found_before_a_model_is_loaded(
    dice: Evaluate, evaluate: Evaluate, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluated, "load_model_to_train", lambda *_: pytest.fail("the model is loaded"))
    shutil.copytree(finished_run, "r")
    for name, task in {"unfinished": "sft", "pairs": "dpo"}.items():
        shutil.copytree("r", name)
        config = Path(name, "config.yaml")
        config.write_text(config.read_text().replace("swiftplug:sft", f"swiftplug:{task}"))
    Path("unfinished/swiftplug.json").unlink()
    before = sorted(map(str, Path().rglob("*")))
    for words, message in MISTAKES:
        with pytest.raises(UserError) as raised:
            evaluate(*words.split())
        assert message in str(raised.value), words
        assert "\n" not in str(raised.value), words
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.fixture(scope="module")
def finished_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    from swiftplug.config.load import load_train_config
    from swiftplug.training.run import train

    folder = tmp_path_factory.mktemp("finished")
    row = {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    given = {"model": str(tiny_model_dir), "dataset": [str(folder / "rows.jsonl")], "output_dir": str(folder / "r")}
    result = train(load_train_config(None, given, ["training.max_steps=1", "training.save_strategy=no"]).config)
    assert result is not None
    return result.run_dir


def test_rows_without_answers_are_good_for_rewards_alone(
    dice: Evaluate, evaluate: Evaluate, finished_run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}: a die?", "answer": str(n % 4)} for n in range(8)]
    (tmp_path / "only.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [finished_run, "--plugin", DICE, "--dataset", "only.jsonl", "--engine", "dice", "--orm", "box"]
    [model] = evaluate(*given)["models"]
    assert "loss" not in model["metrics"]
    assert model["metrics"]["pass@1"] == model["metrics"]["orm/box"]
    assert model["rows"] is None
    with pytest.raises(UserError, match="none usable"):
        evaluate(*given, "--metric", "acc")

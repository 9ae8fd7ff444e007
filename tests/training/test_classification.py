"""Task seq_cls: its loss beside a plain Trainer's, what its evaluation measures, and what `predict` writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.preview.preview import preview
from swiftplug.training.trainer import PlugTrainer

TEXTS = [
    "The film is wonderful",
    "A dull, slow story",
    "I liked it",
    "No",
    "The best of the year, and not only of this one",
    "Never again!",
]
LABELS: dict[str, list[Any]] = {
    "single_label_classification": ["pos", "neg", "pos", "meh", "pos", "neg"],
    "multi_label_classification": [["a"], ["b", "c"], [], ["c"], ["a", "c"], ["b"]],
    "regression": [4.5, 1.25, 3.5, 2.0, 5.0, -0.5],
}
NUMBERS = {
    "single_label_classification": [2, 1, 2, 0, 2, 1],
    "multi_label_classification": [[1.0, 0, 0], [0, 1.0, 1], [0.0, 0, 0], [0.0, 0, 1], [1.0, 0, 1], [0.0, 1, 0]],
    "regression": LABELS["regression"],
}


def rows_of(problem: str) -> list[dict[str, Any]]:
    pairs = zip(TEXTS, LABELS[problem], strict=True)
    return [{"text": text, "label": label, "row": row} for row, (text, label) in enumerate(pairs)]


def predicted(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def classifier(run: Any, write_jsonl: Any) -> Path:
    """A run with one class per row."""
    data = [str(write_jsonl(rows_of("single_label_classification")))]
    run_dir: Path = run("classifier", task="seq_cls", dataset=data).run_dir
    return run_dir


@pytest.mark.parametrize("problem", LABELS)
def test_loss_and_gradient_are_those_of_a_plain_trainer(
    problem: str, run: Any, seen: Any, write_jsonl: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    # Two batches of a step, the second of which is smaller.
    sets = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0, "logging_steps": 1}
    result = run(
        "ours",
        [f"training.{name}={value}" for name, value in sets.items()],
        plugins=seen.source,
        task="seq_cls",
        optimizer="spy",
        dataset=[str(write_jsonl(rows_of(problem)))],
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir,
        num_labels=1 if problem == "regression" else 3,
        problem_type=problem,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    assert model.load_state_dict(seen.weights, strict=False).missing_keys == []
    gradients: dict[str, torch.Tensor] = {}

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
            gradients.update({name: it.grad.clone() for name, it in model.named_parameters() if it.grad is not None})

    examples = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, NUMBERS[problem], strict=True)]
    args = TrainingArguments(
        output_dir=str(tmp_path / "plain"),
        per_device_train_batch_size=6,
        max_steps=1,
        max_grad_norm=0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    plain = Trainer(model, args, DataCollatorWithPadding(tokenizer), examples, callbacks=[Record()])
    plain.train()

    assert result.metrics["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=1e-5)
    assert seen.gradients.keys() == gradients.keys()
    assert "score.weight" in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(seen.gradients[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tuner", "option"), [("full", []), ("freeze", ["tuner.train=[layers.1, score]"]), ("lora", [])]
)
def test_a_run_predicts_what_its_evaluation_saw(
    tuner: str, option: list[str], run: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(rows_of("single_label_classification"))
    sets = ["training.num_train_epochs=3", "training.per_device_eval_batch_size=4", "training.learning_rate=1e-2"]
    result = run(
        "r",
        [*sets, *option],
        task="seq_cls",
        tuner=tuner,
        dataset=[str(data)],
        eval_dataset=[str(data)],
        metrics=["acc", "f1"],
    )
    found = predicted(tmp_path / "r", data)
    assert [each["row"] for each in found] == [*range(6)]
    right = [each["prediction"] == each["label"] for each in found]
    assert result.metrics["eval_acc"] == pytest.approx(np.mean(right))
    losses = [-np.log(each["probabilities"][each["label"]]) for each in found]
    assert result.metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert found[0]["probabilities"].keys() == {"meh", "neg", "pos"}
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "r" / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_several_labels_and_numbers_are_predicted_too(run: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(rows_of("multi_label_classification"))
    result = run("several", task="seq_cls", dataset=[str(data)], eval_dataset=[str(data)], metrics=["acc", "f1"])
    found = predicted(tmp_path / "several", data)
    assert all(each["prediction"] == [it for it, p in each["probabilities"].items() if p >= 0.5] for each in found)
    assert result.metrics["eval_acc"] == np.mean([each["prediction"] == each["label"] for each in found])
    assert all(each["prediction"] == ["a", "b", "c"] for each in predicted(tmp_path / "several", data, "--threshold=0"))

    data = write_jsonl(rows_of("regression"))
    result = run("number", task="seq_cls", dataset=[str(data)], eval_dataset=[str(data)], metrics=["rmse", "pearson"])
    errors = [each["prediction"] - each["label"] for each in predicted(tmp_path / "number", data)]
    assert result.metrics["eval_rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert result.metrics["eval_loss"] == pytest.approx(np.mean(np.square(errors)), rel=1e-4)
    assert not (tmp_path / "number" / "confusion.png").exists()


def test_a_resumed_run_ends_in_the_same_weights(run: Any, write_jsonl: Any, tmp_path: Path) -> None:
    data = write_jsonl(rows_of("single_label_classification"))
    sets = ["training.num_train_epochs=4", "training.per_device_train_batch_size=3", "training.save_strategy=epoch"]
    options = {"task": "seq_cls", "tuner": "lora", "dataset": [str(data)]}
    whole = run("whole", sets, **options).run_dir
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    for step in (6, 8):
        shutil.rmtree(broken / f"checkpoint-{step}")
    for file in ("adapter_model.safetensors", "swiftplug.json"):
        (broken / file).unlink()
    run("broken", sets, resume=True, **options)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_conversations_need_no_answer_and_are_read_by_the_chat_template(
    run: Any, write_jsonl: Any, tmp_path: Path, tiny_model_dir: Path
) -> None:
    rows = [{"prompt": row["text"], "topic": row["label"]} for row in rows_of("single_label_classification")]
    result = run("r", ["data.columns={topic: label}"], task="seq_cls", dataset=[str(write_jsonl(rows))])
    config = json.loads((result.run_dir / "config.json").read_text())
    assert config["id2label"] == {"0": "meh", "1": "neg", "2": "pos"}
    assert config["problem_type"] == "single_label_classification"
    found = predicted(result.run_dir, write_jsonl([{"prompt": TEXTS[0]}]))

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(result.run_dir).eval()
    messages = [{"role": "user", "content": TEXTS[0]}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits[0].softmax(0).tolist()
    assert [*found[0]["probabilities"].values()] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        ("regression", {"metrics": ["f1"]}, "metric f1 compares classes of rows"),
        ("single_label_classification", {"metrics": ["rmse"]}, "metric rmse compares numbers"),
        ("multi_label_classification", {"metrics": ["mcc"]}, "metric mcc compares one class"),
        ("single_label_classification", {"metrics": ["perplexity"]}, "metric perplexity is of predicted tokens"),
        ("single_label_classification", {"metrics": ["exact_match"]}, "exact_match compares generated answers"),
        ("single_label_classification", {"loss": "focal"}, "loss does not act in task seq_cls"),
        ("single_label_classification", {"data.packing": True}, "data.packing: task seq_cls keeps each row apart"),
        ("single_label_classification", {"task": "sft", "metrics": ["f1"]}, "metric f1 .* it is for task seq_cls"),
    ],
)
def test_what_means_nothing_is_refused_before_the_model_is_loaded(
    problem: str, options: dict[str, Any], message: str, run: Any, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftplug.training.run.load_model_to_train", None)
    data = [str(write_jsonl(rows_of(problem)))]
    with pytest.raises(UserError, match=message):
        run(**{"task": "seq_cls", "dataset": data, "eval_dataset": data, **options})


def test_a_new_head_runs_no_code_of_a_checkpoint_that_was_not_allowed(
    run: Any, write_jsonl: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The model is one of Transformers' own, and what its folder names in place of it is not asked for."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "evil.py").write_text("raise SystemExit('it ran')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "x", "1": "y"}}
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    data = [str(write_jsonl(rows_of("single_label_classification")))]
    trained = run("new", ["training.max_steps=1"], task="seq_cls", dataset=data, model=str(folder))
    saved = json.loads((trained.run_dir / "config.json").read_text())
    assert saved["id2label"] == {"0": "meh", "1": "neg", "2": "pos"}


def test_all_processes_give_as_many_rows_of_logits(run: Any, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose last batch is filled up with rows of another one counts fewer, but gathers as many."""
    shapes = []
    step = PlugTrainer.prediction_step

    def recording(self: PlugTrainer, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = step(self, *args, **kwargs)
        shapes.append((len(logits), len(labels)))
        return loss, logits, labels

    monkeypatch.setattr(PlugTrainer, "prediction_step", recording)
    monkeypatch.setattr(
        PlugTrainer, "_without_repeated_rows", lambda self, batch: self.loss_computer.first_rows(batch, 2)
    )
    data = [str(write_jsonl(rows_of("single_label_classification")))]
    run(task="seq_cls", dataset=data, eval_dataset=data, metrics=["acc"])
    assert shapes == [(6, 6)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "{data}"], "RUN: no folder 'nowhere'"),
        (["{run}", "nothing.jsonl"], "DATASET: no such file, folder, hub id or dataset plugin: 'nothing.jsonl'"),
        (["{run}", "{bad}"], "2 rows, none usable: the text is empty: .*bad.jsonl:1; no known columns"),
        (["{run}", "{data}", "--threshold=0.4"], "--threshold: is for several labels per row"),
        (["{run}", "{data}", "--output={data}"], "is the dataset itself"),
        (["{run}", "{data}", "--output=nowhere/labels.jsonl"], "there is no folder nowhere"),
        (["{run}", "{data}", "--set=data.columns={question: text}"], "no dataset has a column 'question'"),
    ],
)
def test_predict_explains_what_is_wrong_before_the_model_is_loaded(
    arguments: list[str],
    message: str,
    classifier: Path,
    write_jsonl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swiftplug.runs.arguments.Arguments.load_model", None)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": ""}\n{"x": 1}\n')
    data = write_jsonl(rows_of("single_label_classification"))
    before = data.read_bytes()
    places = {"run": classifier, "data": data, "bad": bad}
    with pytest.raises(UserError, match=message):
        predicted(*(each if each.startswith("--set") else each.format(**places) for each in arguments))
    assert data.read_bytes() == before


def test_a_run_that_writes_text_predicts_no_labels(run: Any, chat_file: Path) -> None:
    with pytest.raises(UserError, match="is a run of task sft, whose model writes text; swiftplug sample"):
        predicted(run().run_dir, chat_file)


def test_a_run_that_rates_steps_predicts_no_labels(run: Any, write_jsonl: Any) -> None:
    rows = write_jsonl([{"prompt": "1 + 1?", "completions": ["2.", "So 3."], "labels": [True, False]}] * 8)
    steps = run(task="prm", dataset=[str(rows)]).run_dir
    with pytest.raises(UserError, match=f"task prm, whose model rates steps; swiftplug sample --prm {steps} scores"):
        predicted(steps, rows)


def test_rows_that_cannot_be_used_are_counted_and_the_others_keep_their_order(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = tmp_path / "mixed.jsonl", tmp_path / "labels.jsonl"
    lines = [{"text": "b", "id": 1}, {"text": " ", "id": 2}, {"prompt": "Hi", "id": 3}, {"text": "long " * 99, "id": 4}]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert predicted(classifier, data, "--output", output, "--set=data.max_length=64") == []
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [1, 3]
    assert json.loads(output.read_text().splitlines()[0]).keys() == {"text", "id", "prediction", "probabilities"}
    # None of the rows that are read first can be used.
    monkeypatch.setattr("swiftplug.training.predict.ROWS_AT_ONCE", 1)
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines[::-1]))
    assert [each["id"] for each in predicted(classifier, data, "--set=data.max_length=64")] == [3, 1]


def test_a_reward_model_predicts_the_reward(run: Any, write_jsonl: Any, tiny_model_dir: Path) -> None:
    row = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
    run_dir = run(task="rm", dataset=[str(write_jsonl([row]))]).run_dir
    data = write_jsonl([{"prompt": "2 + 2?", "completion": "4", "prediction": 9}])
    done = CliRunner().invoke(app, ["predict", str(run_dir), str(data)], catch_exceptions=False)
    assert "`prediction` of 1 row: replaced by that of this model" in done.stderr
    found = json.loads(done.stdout)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        reward = AutoModelForSequenceClassification.from_pretrained(run_dir).eval()(ids).logits.item()
    assert found["prediction"] == pytest.approx(reward, abs=1e-5)
    done = CliRunner().invoke(app, ["predict", str(run_dir), str(write_jsonl([row]))], catch_exceptions=False)
    assert "1 row has `rejected`: not read (of preferences, only the preferred answer is used)" in done.stderr
    assert json.loads(done.stdout) == {**row, "prediction": found["prediction"]}


def test_the_preview_shows_text_and_label(tiny_model_dir: Path, write_jsonl: Any) -> None:
    data = str(write_jsonl(rows_of("single_label_classification")))
    given = {"task": "seq_cls", "model": str(tiny_model_dir), "dataset": [data]}
    shown = preview(load_train_config(None, given, []).config, rows=1, format="text", color=False)
    assert 'label: "pos"' in shown
    assert TEXTS[0] in shown
    assert "1 of 1 row used" in shown


LOGS_A_METRIC = """
from swiftplug.builtin.tasks.classification import SequenceClassification
from swiftplug.plugin import TaskLoss, register_task

@register_task("overwriting")
class Overwriting(SequenceClassification):
    def __init__(self, says_so: bool):
        super().__init__()
        self.says_so = says_so

    def log_names(self):
        return ["acc"] if self.says_so else None

    def loss(self, model, batch):
        computed = super().loss(model, batch)
        return TaskLoss(computed.sums, {"acc": computed.sums["rows"].detach()})
"""


@pytest.mark.parametrize("says_so", [True, False])
def test_what_a_task_logs_overwrites_no_metric(run: Any, write_jsonl: Any, says_so: bool, tmp_path: Path) -> None:
    data = [str(write_jsonl(rows_of("single_label_classification")))]
    task = {"name": "overwriting", "says_so": says_so}
    with pytest.raises(UserError, match=r"task 'overwriting' .* logs '(eval_)?acc', which a metric returns too"):
        run(
            "r",
            ["training.eval_strategy=epoch"],
            plugins=LOGS_A_METRIC,
            task=task,
            metrics=["acc"],
            dataset=data,
            eval_dataset=data,
        )
    assert (tmp_path / "r").exists() is not says_so

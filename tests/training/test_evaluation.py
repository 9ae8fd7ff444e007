"""Evaluation against plain Transformers: the loss over trained tokens, metrics on tokens and on generated answers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftplug.errors import UserError
from swiftplug.runs.console import Activity

# Metrics of every form, which write what they were given to a file.
METRICS = """
import json, os
from swiftplug.plugin import register_metric

@register_metric("shapes")
def shapes():
    def compute(prediction):
        return {"kept_numbers": float(prediction.predictions.size)}
    return compute, lambda logits, labels: logits.argmax(-1)[:, :1]

@register_metric("spy")
class Spy:
    generate = True
    def __init__(self, max_new_tokens: int = 5):
        self.max_new_tokens = max_new_tokens
    def __call__(self, predictions, references):
        with open(os.environ["SPY"], "w") as file:
            json.dump([predictions, references], file)
        return {"answers": len(predictions)}
"""


def trained_token_losses(folder: Path, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """The summed loss of assistant tokens and their number, row by row; what is trained is found by string search."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        spans, start = [], 0
        while (begin := text.find("<|im_start|>assistant\n", start)) >= 0:
            begin += len("<|im_start|>assistant\n")
            start = text.index("<|im_end|>", begin) + len("<|im_end|>")
            spans.append((begin, start))
        ids = torch.tensor([encoded["input_ids"]])
        trained = [any(a <= at < b for a, b in spans) for at, _ in encoded["offset_mapping"]]
        labels = torch.where(torch.tensor([trained]), ids, -100)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="none")
        total, count = total + losses.sum().item(), count + int((labels[0, 1:] != -100).sum())
    return total, count


def test_batches_are_counted_while_answers_are_generated(
    run: Any, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPY", str(tmp_path / "spied.json"))
    seen: list[list[str]] = []
    advance = Activity.advance

    def watch(self: Activity, *args: Any, **more: float) -> None:
        advance(self, *args, **more)
        seen.append([self.doing, self.figures()[0]])

    monkeypatch.setattr(Activity, "advance", watch)
    sets = ["training.max_steps=1", "training.per_device_eval_batch_size=2"]
    run("r", sets, plugins=METRICS, metrics=["spy"], eval_dataset=[f"{chat_file}#3"])
    assert seen[-5:] == [
        ["training", "1/1 step"],
        ["evaluating", "1/2 batches"],
        ["evaluating", "2/2 batches"],
        ["generating answers", "1/2 batches"],
        ["generating answers", "2/2 batches"],
    ]


@pytest.mark.parametrize("metrics", [[], ["acc", "perplexity"]], ids=["loss only", "with logits"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_eval_loss_is_the_mean_over_trained_tokens(
    run: Any, chats: list[dict[str, Any]], chat_file: Path, batch_size: int, metrics: list[str]
) -> None:
    sets = ["training.max_steps=1", f"training.per_device_eval_batch_size={batch_size}"]
    result = run("r", sets, eval_dataset=[f"{chat_file}#10"], metrics=metrics)
    total, count = trained_token_losses(result.run_dir, chats[:10])
    assert result.metrics["eval_loss"] == pytest.approx(total / count, abs=1e-4)
    if metrics:
        assert result.metrics["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
        assert 0 <= result.metrics["eval_token_acc"] <= 1


def test_two_metrics_of_different_forms_with_one_name(
    run: Any, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPY", str(tmp_path / "spied.json"))
    plugins = METRICS.replace('"answers"', '"kept_numbers"')
    given = {"metrics": ["shapes", "spy"], "eval_dataset": [f"{chat_file}#2"]}
    with pytest.raises(UserError, match="metrics 'shapes' and 'spy' both return 'kept_numbers'"):
        run("r", ["training.max_steps=1"], plugins=plugins, **given)


def test_metrics_of_every_form_act_together(
    run: Any, chats: list[dict[str, Any]], chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPY", str(tmp_path / "spy.json"))
    result = run(
        "r",
        ["training.max_steps=1", "metrics.spy.max_new_tokens=7", "training.per_device_eval_batch_size=4"],
        plugins=METRICS,
        eval_dataset=[f"{chat_file}#10"],
        metrics=["acc", "shapes", "spy"],
    )
    assert result.metrics["eval_kept_numbers"] == 10
    predictions, references = json.loads((tmp_path / "spy.json").read_text())
    assert references == [row["messages"][-1]["content"] for row in chats[:10]]

    model = AutoModelForCausalLM.from_pretrained(result.run_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.run_dir)
    for row, prediction in zip(chats[:10], predictions, strict=True):
        prompt = tokenizer.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**prompt, do_sample=False, max_new_tokens=7)
        answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction == answer


def test_answers_are_generated_once_of_a_row_that_is_split_and_to_no_empty_prompt(
    run: Any,
    chats: list[dict[str, Any]],
    write_jsonl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SPY", str(tmp_path / "spy.json"))
    unprompted = {"text": "A text of its own."}
    sets = ["training.max_steps=1", "data.max_length=16", "data.too_long=split"]
    sets += ["training.per_device_eval_batch_size=1"]  # an empty prompt would be alone in its batch
    given: dict[str, Any] = {"plugins": METRICS, "metrics": ["spy"]}
    file = write_jsonl([chats[0], unprompted, *chats[2:5]], "eval.jsonl")
    result = run("r", sets, eval_dataset=[str(file)], **given)
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 rows split" in printed and "1 evaluation row has no prompt to answer" in printed
    predictions, references = json.loads((tmp_path / "spy.json").read_text())
    assert references == [row["messages"][-1]["content"] for row in (chats[0], *chats[2:5])]
    assert len(predictions) == result.metrics["eval_answers"] == 4
    with pytest.raises(UserError, match="metrics: 1 evaluation row has no prompt to answer; expected a message before"):
        run("none", sets, eval_dataset=[str(write_jsonl([unprompted], "none.jsonl"))], **given)


def test_the_best_checkpoint_is_what_is_left(run: Any, chat_file: Path) -> None:
    # With the highest loss called the best, the best is not the last.
    sets = [
        "training.num_train_epochs=6",
        "training.learning_rate=0.1",
        "training.metric_for_best_model=eval_loss",
        "training.greater_is_better=true",
        "training.eval_strategy=epoch",
        "training.save_strategy=epoch",
        "training.load_best_model_at_end=true",
    ]
    for tuner in ("lora", "full"):
        result = run(tuner, sets, tuner=tuner, eval_dataset=[f"{chat_file}#6"])
        log = [json.loads(line) for line in (result.run_dir / "log.jsonl").read_text().splitlines()]
        losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
        best = max(losses, key=lambda step: losses[step])
        assert best != max(losses)
        weights = next(result.run_dir.glob("*.safetensors")).name
        assert (result.run_dir / weights).read_bytes() == (result.run_dir / f"checkpoint-{best}" / weights).read_bytes()

"""Reward models: against TRL and Transformers, saved, loaded by others, trained further, and used as scorers."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from swiftplug.config.load import load_sample_config
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.plugin.rewards import InferRequest
from swiftplug.sampling.run import sample

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
AUTO: dict[tuple[str, str], Any] = {
    ("rm", "full"): AutoModelForSequenceClassification,
    ("rm", "lora"): AutoPeftModelForSequenceClassification,
    ("prm", "full"): AutoModelForTokenClassification,
    ("prm", "lora"): AutoPeftModelForTokenClassification,
}


def make_rows(task: str) -> list[dict[str, Any]]:
    """Twelve pairs with margins, or questions with three steps, of different lengths."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        a, b = draw.randrange(90), draw.randrange(90)
        prompt = [{"role": "user", "content": f"{a} + {b}?" + " please" * draw.randrange(4)}]
        if task == "prm":
            steps = [f"{a}" + "!" * draw.randrange(5), f"plus {b}", f"{a + b}"]
            rows.append({"prompt": prompt, "completions": steps, "labels": [True, number % 2 == 0, number % 3 == 0]})
            continue
        answers = {
            "chosen": f"It is {a + b}." + " Yes." * draw.randrange(4),
            "rejected": "No" + "!" * draw.randrange(9),
        }
        turns = {name: [{"role": "assistant", "content": it}] for name, it in answers.items()}
        rows.append({"prompt": prompt, **turns, "margin": number / 8 - 0.5})
    return rows


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
@pytest.mark.parametrize("lora", [LORA, None])
def test_the_first_step_is_that_of_trl(
    first_step: Any, trl_oracle: Any, bare_model_dir: Path, tmp_path: Path, lora: Any, coefficient: float
) -> None:
    rows = make_rows("rm") if coefficient else [{**row, "margin": 0.0} for row in make_rows("rm")]
    found = first_step("rm", rows, lora=lora, center_rewards_coefficient=coefficient)
    theirs = rows if coefficient else [{name: it for name, it in row.items() if name != "margin"} for row in rows]
    options = {"center_rewards_coefficient": coefficient} if coefficient else {}
    expected = trl_oracle.trl_step("Reward", bare_model_dir, theirs, tmp_path, found.weights, lora, **options)
    ours = found.step._replace(texts=sorted((ids, []) for ids, _ in found.step.texts))
    trl_oracle.assert_same(ours, expected)
    margin = found.metrics["rewards/chosen"] - found.metrics["rewards/rejected"]
    assert found.metrics["rewards/margins"] == pytest.approx(margin, abs=1e-5)


def test_the_loss_of_steps_is_that_of_transformers(
    first_step: Any, bare_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, hidden: hidden)  # Transformers has one at the head
    rows = make_rows("prm")
    found = first_step("prm", rows)
    tokenizer = AutoTokenizer.from_pretrained(bare_model_dir)
    texts = []
    for row in rows:
        ids = list(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])
        labels = [-100] * len(ids)
        for step, is_right in zip(row["completions"], row["labels"], strict=True):
            more = tokenizer(step)["input_ids"] + tokenizer("\n")["input_ids"]
            ids, labels = ids + more, labels + [-100] * (len(more) - 1) + [int(is_right)]
        texts.append((ids, labels))
    assert found.step.texts == sorted(texts)
    model = AutoModelForTokenClassification.from_pretrained(bare_model_dir, num_labels=2)
    model.load_state_dict(found.weights)
    longest = max(len(ids) for ids, _ in texts)
    ids, labels, mask = (
        torch.tensor([values + [fill] * (longest - len(values)) for values in each])
        for each, fill in (
            ([ids for ids, _ in texts], 0),
            ([labels for _, labels in texts], -100),
            ([[1] * len(ids) for ids, _ in texts], 0),
        )
    )
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels)
    outputs.loss.backward()
    assert found.step.loss == pytest.approx(outputs.loss.item(), rel=1e-5)
    gradients = {name: it.grad for name, it in model.named_parameters()}
    for name, gradient in found.step.gradients.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-5, atol=1e-6)
    is_right = (outputs.logits.argmax(-1) == labels)[labels >= 0].float().mean().item()
    assert found.metrics["accuracy"] == pytest.approx(is_right)


@pytest.fixture
def train_head(run: Any, write_jsonl: Any, tmp_path: Path) -> Any:
    """Train the tiny model for a few steps: `train_head(task, tuner, name)` returns the folder and the metrics."""

    def start(task: str, tuner: str, name: str = "run", *sets: str, **options: Any) -> tuple[Path, dict[str, float]]:
        data = write_jsonl(make_rows("prm" if task == "prm" else "rm"), f"{task}.jsonl")
        given = {"task": task, "tuner": tuner, "dataset": [str(data)], **options}
        steps = ["training.learning_rate=0.01", "training.max_steps=4", "training.per_device_train_batch_size=3"]
        return tmp_path / name, run(name, [*steps, *sets], **given).metrics

    return start


@pytest.mark.parametrize(("task", "tuner"), AUTO)
def test_what_a_run_leaves_scores_as_its_evaluation_did(train_head: Any, task: str, tuner: str, tmp_path: Path) -> None:
    folder, metrics = train_head(task, tuner, "first", eval_dataset=[str(tmp_path / f"{task}.jsonl")])
    if tuner == "lora":  # an adapter on a base model that the run has to keep, and both are moved
        folder, metrics = train_head(
            task, tuner, "run", "tuner.r=2", model=str(folder), eval_dataset=[str(tmp_path / f"{task}.jsonl")]
        )
        assert (folder / "base_model").is_dir()
        shutil.move(folder, tmp_path / "moved")
        folder = tmp_path / "moved"
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(folder / "base_model")
        plain = tmp_path / "plain"
        shutil.copytree(folder, plain)
        (plain / "adapter_config.json").write_text(json.dumps(config))
    model = AUTO[task, tuner].from_pretrained(plain if tuner == "lora" else folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores, requests, is_right = [], [], []
    for row in make_rows(task):
        if task == "rm":
            requests += [InferRequest([*row["prompt"], *row[name]]) for name in ("chosen", "rejected")]
            is_right += [True, False]
        else:
            requests.append(
                InferRequest([*row["prompt"], {"role": "assistant", "content": "\n".join(row["completions"])}])
            )
            is_right += row["labels"]
    kind = "orm" if task == "rm" else "prm"
    choice = PluginChoice(name="reward_model", options={"model": str(folder), "dtype": "float32"})
    rewards = Registry.discover().resolve(kind, choice, "--orm").bound(requests, [None] * len(requests))
    scores = rewards if task == "rm" else [reward for steps in rewards for reward in steps]
    names = ("rewards/chosen", "rewards/rejected") if task == "rm" else ("probability/right", "probability/wrong")
    for name, wanted in zip(names, (True, False), strict=True):
        values = [score for score, right in zip(scores, is_right, strict=True) if right is wanted]
        assert sum(values) / len(values) == pytest.approx(metrics[f"eval_{name}"], abs=1e-5)
    first = requests[0].messages
    ids = tokenizer.apply_chat_template(first[: None if task == "rm" else 1], add_generation_prompt=task == "prm")[
        "input_ids"
    ]
    if task == "prm":
        ids = ids + tokenizer(first[1]["content"].split("\n")[0])["input_ids"] + tokenizer("\n")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    alone = logits[0] if task == "rm" else logits[-1].softmax(-1)[1]
    assert scores[0] == pytest.approx(alone.item(), abs=1e-5)


def test_what_scores_steps_splits_them_as_the_run_did(train_head: Any, tmp_path: Path) -> None:
    folder, _ = train_head("prm", "full", "run", "task.step_separator='##'", "training.save_strategy=steps")
    answer = {"role": "assistant", "content": "1 + 2##is\n##3"}
    request = InferRequest([{"role": "user", "content": "1 + 2?"}, answer])

    def rewards(place: Path, **options: Any) -> Any:
        choice = PluginChoice(name="reward_model", options={"model": str(place), **options})
        [steps] = Registry.discover().resolve("prm", choice, "--prm").bound([request], [None])
        return steps

    found = rewards(folder)
    assert len(found) == 3
    assert found == rewards(folder / "checkpoint-4") == rewards(folder, step_separator="##")
    with pytest.raises(UserError, match=r"step_separator: found '\\n', but '.*run' was trained with '##'; drop it"):
        rewards(folder, step_separator="\n")
    (folder / "swiftplug.json").unlink()  # as one of another tool, or of an older version, which lacks the entry
    assert len(rewards(folder)) == 2
    assert rewards(folder, step_separator="##") == found


@pytest.mark.parametrize(
    ("task", "best"),
    [
        ("dpo", "eval_rewards/accuracies"),
        ("orpo", "nll_loss"),
        ("kto", "eval_kl"),
        ("rm", "rewards/accuracies"),
        ("prm", "eval_accuracy"),
        ("seq_cls", "eval_loss"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_the_task_logs(run: Any, write_jsonl: Any, task: str, best: str) -> None:
    rows = make_rows("prm" if task == "prm" else "rm")
    if task == "seq_cls":
        rows = [{"messages": row["prompt"], "label": row["margin"] > 0} for row in rows]
    data = str(write_jsonl(rows))
    fields = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    fields |= {"metric_for_best_model": best, "max_steps": 2, "learning_rate": 0.01}
    sets = [f"training.{name}={json.dumps(value)}" for name, value in fields.items()]
    result = run(sets=sets, task=task, dataset=[data], eval_dataset=[data], callbacks=["early_stop"])
    lines = [json.loads(line) for line in (result.run_dir / "log.jsonl").read_text().splitlines()]
    given = {name.removeprefix("eval_") for line in lines for name in line if name.startswith("eval_")}
    given -= {"loss", "runtime", "samples_per_second", "steps_per_second"}
    assert given == {*Registry.discover().resolve("task", PluginChoice(name=task), "--task").bound.log_names()}
    state = json.loads(max(result.run_dir.glob("checkpoint-*/trainer_state.json")).read_text())
    name = f"eval_{best.removeprefix('eval_')}"
    values = [line[name] for line in lines if name in line]
    assert state["best_metric"] == (min(values) if name.endswith("loss") else max(values))


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_resumed_run_is_the_same_run(train_head: Any, tuner: str) -> None:
    steps = ["training.save_strategy=steps", "training.save_steps=2"]
    folder, _ = train_head("rm", tuner, "run", *steps)
    weights = folder / ("adapter_model.safetensors" if tuner == "lora" else "model.safetensors")
    before = weights.read_bytes(), (folder / "swiftplug.json").read_text()
    for name in ("checkpoint-4", "swiftplug.json"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    weights.unlink()
    train_head("rm", tuner, "run", *steps, resume=True)
    assert (weights.read_bytes(), (folder / "swiftplug.json").read_text()) == before


def test_the_model_of_a_run_gets_a_head_and_keeps_it(train_head: Any, tmp_path: Path) -> None:
    still = ["training.learning_rate=0", "training.max_steps=1"]
    tuned, _ = train_head("sft", "lora", "tuned")
    base = AutoModelForCausalLM.from_pretrained(
        json.loads((tuned / "swiftplug.json").read_text())["base_model"]["name"]
    )
    from peft import PeftModel

    merged = PeftModel.from_pretrained(base, str(tuned)).merge_and_unload().state_dict()
    first, _ = train_head("rm", "full", "first", *still, model=str(tuned))
    model = AutoModelForSequenceClassification.from_pretrained(first)
    config = model.config
    assert (config.num_labels, config.pad_token_id, config.architectures) == (1, 0, ["LlamaForSequenceClassification"])
    for name, weight in model.state_dict().items():
        if name != "score.weight":
            torch.testing.assert_close(weight, merged[name])
    again, _ = train_head("rm", "full", "again", *still, model=str(first))
    kept = AutoModelForSequenceClassification.from_pretrained(again).score.weight
    assert torch.equal(kept, model.score.weight)
    other, _ = train_head("prm", "full", "other", *still, model=str(first))
    steps = AutoModelForTokenClassification.from_pretrained(other)
    assert steps.score.weight.shape == (2, 32)
    assert torch.equal(steps.model.norm.weight, model.model.norm.weight)
    data = str(tmp_path / "rm.jsonl")
    for place, use in ((first, "--orm"), (other, "--prm")):
        with pytest.raises(UserError, match=f"is of task p?rm, so it writes no text; .* sample {use} "):
            sample(
                load_sample_config(
                    None, {"model": str(place), "dataset": [data], "output_dir": str(tmp_path / "s")}, []
                ).config
            )
    with pytest.raises(UserError, match="is of task rm, so it writes no text"):
        train_head("sft", "full", "none", model=str(first))


@pytest.mark.parametrize(
    ("task", "change", "options", "cause"),
    [
        ("rm", {"margin": "big"}, {}, "`margin` is not a finite number .*it is .big"),
        ("rm", {"margin": True}, {}, "`margin` is not a finite number"),
        ("rm", {}, {"loss_scale": "last_round"}, "a loss scale does not act in task rm"),
        ("rm", {}, {"eval_dataset": ["/nowhere"], "metrics": ["acc"]}, "a metric does not act in task rm"),
        ("rm", {}, {"data.packing": True}, "task rm keeps each row apart"),
        ("rm", {}, {"tuner": {"name": "peft", "type": "p_tuning"}}, "learns a prompt"),
        ("rm", {}, {"task": {"name": "rm", "center_rewards_coefficient": -1}}, "greater than or equal to 0"),
        ("prm", {"labels": [True]}, {}, "not as many labels as steps .*3 steps, 1 labels"),
        ("prm", {"labels": [True, False, "so"]}, {}, "the label of a step is not true or false .*step 3 has 'so'"),
        ("prm", {"labels": None}, {}, "no steps with labels .*found `completions`, expected `completions` or"),
        ("prm", {"completions": ["a", " ", "b"]}, {}, "a step is empty .*step 2"),
        ("prm", {"completions": ["a", "b\nc", "d"]}, {}, r"a step contains the separator of steps .*step 2 has '\\n'"),
        ("prm", {"completions": [1, 2, 3]}, {}, "a step is not text"),
        ("prm", {"prompt": [{"role": "assistant", "content": "x"}]}, {}, "roles out of order|no question"),
        ("prm", {}, {"task": {"name": "prm", "step_separator": ""}}, "step_separator: is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_a_model_is_loaded(
    run: Any, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch, task: str, change: Any, options: Any, cause: str
) -> None:
    monkeypatch.setattr("swiftplug.training.run.load_model_to_train", None)
    data = write_jsonl([{**row, **change} for row in make_rows(task)], "rows.jsonl")
    with pytest.raises(UserError, match=cause) as error:
        run(**{"task": task, "dataset": [str(data)], **options})
    assert "\n" not in str(error.value)

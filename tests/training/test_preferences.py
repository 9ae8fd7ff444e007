"""Preference objectives against TRL: the same tokens, loss and gradient at the first step of a real run."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOTrainer

from swiftplug.builtin.tasks.preferences import DPO, KTO, ORPO
from swiftplug.cli.main import app
from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.plugin import SequenceLogps
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.training.task_loss import TaskLossComputer

LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "init_lora_weights": False,
}
ROBUST = {"loss_type": "robust", "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    """Six pairs of answers of different lengths, some after a conversation."""
    draw = random.Random(0)
    rows = []
    for number in range(6):
        a, b = draw.randrange(90), draw.randrange(90)
        prompt = [{"role": "user", "content": f"{a} + {b}?" + " please" * draw.randrange(4)}]
        if number % 3 == 2:
            prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, *prompt]
        chosen = f"It is {a + b}." + " Yes." * draw.randrange(4)
        rejected = f"{a + b + 1}" + "!" * draw.randrange(9)
        answers = {"chosen": chosen, "rejected": rejected}
        rows.append(
            {"prompt": prompt, **{name: [{"role": "assistant", "content": it}] for name, it in answers.items()}}
        )
    return rows


@pytest.mark.parametrize(
    ("task", "options", "trainer", "theirs"),
    [
        ("dpo", {}, "DPO", {}),
        ("dpo", {"beta": 0.3, "loss_type": "hinge"}, "DPO", {"beta": 0.3, "loss_type": "hinge"}),
        ("dpo", {"beta": 0.3, "loss_type": "ipo"}, "DPO", {"beta": 0.3, "loss_type": "ipo"}),
        ("dpo", ROBUST, "DPO", ROBUST),
        ("dpo", {"loss_type": "apo_zero"}, "DPO", {"loss_type": "apo_zero"}),
        ("dpo", {"loss_type": "apo_down"}, "DPO", {"loss_type": "apo_down"}),
        ("dpo", {"rpo_alpha": 0.7}, "DPO", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
        ("dpo", {"length_normalization": True, "beta": 2.0}, "DPO", {"loss_type": "sigmoid_norm", "beta": 2.0}),
        ("cpo", {}, "CPO", {}),
        ("cpo", {"beta": 0.5, "cpo_alpha": 0.0}, "CPO", {"beta": 0.5, "cpo_alpha": 0.0}),
        ("simpo", {}, "CPO", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
        ("orpo", {"nll_on_prompt": True, "beta": 0.2}, "ORPO", {"beta": 0.2}),
    ],
)  # fmt: skip
def test_the_first_step_is_that_of_trl(
    first_step: Any,
    trl_oracle: Any,
    pairs: list[dict[str, Any]],
    bare_model_dir: Path,
    tmp_path: Path,
    task: str,
    options: dict[str, Any],
    trainer: str,
    theirs: dict[str, Any],
) -> None:
    found = first_step(task, pairs, lora=LORA, **options)
    expected = trl_oracle.trl_step(trainer, bare_model_dir, pairs, tmp_path, found.weights, LORA, **theirs)
    trl_oracle.assert_same(found.step, expected)


def test_the_prompts_of_orpo_count_however_a_step_is_cut(
    first_step: Any, trl_oracle: Any, pairs: list[dict[str, Any]]
) -> None:
    whole = first_step("orpo", pairs, LORA, nll_on_prompt=True).step
    trl_oracle.assert_same(first_step("orpo", pairs, LORA, batch_size=2, nll_on_prompt=True).step, whole)


def test_without_an_adapter_too(
    first_step: Any, trl_oracle: Any, pairs: list[dict[str, Any]], bare_model_dir: Path, tmp_path: Path
) -> None:
    trl_oracle.assert_same(first_step("dpo", pairs).step, trl_oracle.trl_step("DPO", bare_model_dir, pairs, tmp_path))


def test_orpo_is_the_formula_of_the_paper_on_the_tokens_that_train(
    first_step: Any, pairs: list[dict[str, Any]], bare_model_dir: Path
) -> None:
    found = first_step("orpo", pairs, beta=0.25).step
    model = AutoModelForCausalLM.from_pretrained(bare_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(bare_model_dir)
    nll, tokens, penalties = 0.0, 0, []
    for row in pairs:
        start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"])
        odds = {}
        for answer in ("chosen", "rejected"):
            ids = torch.tensor(tokenizer.apply_chat_template(row["prompt"] + row[answer])["input_ids"])
            with torch.no_grad():
                logps = model(ids[None]).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[start:, None])
            p = float(logps.mean().exp())
            odds[answer] = p / (1 - p)
            if answer == "chosen":
                nll, tokens = nll - float(logps.sum()), tokens + len(logps)
        penalties.append(-math.log(1 / (1 + odds["rejected"] / odds["chosen"])))
    assert found.loss == pytest.approx(nll / tokens + 0.25 * sum(penalties) / len(pairs), rel=1e-5)


def test_label_smoothing_is_conservative_dpo() -> None:
    """Against TRL's CPO loss, which has the same smoothing of another margin."""
    chosen, rejected = (
        SequenceLogps(torch.tensor(logps), torch.tensor([3, 4]), torch.zeros(2))
        for logps in ([-3.0, -9.0], [-5.0, -2.5])
    )
    theirs = SimpleNamespace(
        alpha=0.0, beta=0.4, loss_type="sigmoid", label_smoothing=0.2, accelerator=SimpleNamespace(device="cpu")
    )
    expected, _, _ = CPOTrainer.cpo_loss(theirs, chosen.logps, rejected.logps)
    torch.testing.assert_close(DPO(beta=0.4, label_smoothing=0.2).pair_loss(chosen, rejected), expected)


def test_a_chosen_answer_that_is_certain_has_a_gradient_in_orpo() -> None:
    logps = torch.zeros(2, requires_grad=True)
    chosen, rejected = SequenceLogps(logps, torch.tensor([3, 4])), SequenceLogps(logps - 2, torch.tensor([3, 4]))
    loss = ORPO().pair_loss(chosen, rejected).sum()
    loss.backward()
    assert loss.isfinite() and logps.grad is not None and logps.grad.isfinite().all()


@pytest.mark.parametrize(
    ("task", "cause"),
    [
        ({"loss_type": "apo-zero"}, "there is no loss_type 'apo-zero'; did you mean 'apo_zero'?"),
        ({"loss_type": "sppo_hard"}, "there is no loss_type 'sppo_hard'; choose from: apo_down, apo_zero, hinge, ipo"),
        ({"loss_type": "sigmoid_norm"}, "use loss_type sigmoid with length_normalization: true"),
        ({"loss_type": "simpo"}, "there is no loss_type 'simpo'; use task simpo"),
        ({"loss_type": "robust"}, "loss_type robust needs label_smoothing"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "'label_smoothing': input should be less than 0.5"),
        ({"loss_type": "ipo", "length_normalization": True}, "takes ratios per token already; drop length_norm"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "acts with loss_type sigmoid and robust, not with hinge"),
        ({"beta": 0}, "cannot take option 'beta': input should be greater than 0, found 0"),
        ({"rpo_alpha": -1}, "cannot take option 'rpo_alpha': input should be greater than or equal to 0"),
        ({"gamma": 1}, "takes no option 'gamma'"),
        ({"task": "kto", "loss_type": "apo-zero-unpaired"}, "did you mean 'apo_zero_unpaired'?"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_read(task: dict[str, Any], cause: str) -> None:
    task = dict(task)
    sets = ["model=/nowhere", "dataset=/nowhere.jsonl"]
    given = {"task": task.pop("task", "dpo")}
    with pytest.raises(UserError) as error:
        resolve_plugins(load_train_config(None, given, [*sets, *(f"task.{it}={task[it]}" for it in task)]).config)
    assert cause in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def rated(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two good answers and four bad ones."""
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if index < 2 else "rejected"], "label": index < 2}
        for index, row in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("seed", "options"),
    [  # with seed 1 the estimate of the KL is above 0
        (1, {}),
        (1, {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.5}),
        (2, {"beta": 0.5}),
        (1, {"loss_type": "apo_zero_unpaired"}),
    ],
)
def test_kto_is_that_of_trl(
    first_step: Any,
    trl_oracle: Any,
    rated: list[dict[str, Any]],
    bare_model_dir: Path,
    tmp_path: Path,
    seed: int,
    options: dict[str, Any],
) -> None:
    lora = {**LORA, "lora_alpha": 1}
    found = first_step("kto", rated, lora, seed, **options)
    expected = trl_oracle.trl_step("KTO", bare_model_dir, rated, tmp_path, found.weights, lora, **options)
    if "loss_type" in options:  # without an estimate of the KL, TRL makes no texts for it
        assert len(expected.texts) == len(rated) and all(text in found.step.texts for text in expected.texts)
        expected = expected._replace(texts=found.step.texts)
    else:
        assert found.metrics["kl"] > 0.1 or (seed == 2 and found.metrics["kl"] == 0)
    trl_oracle.assert_same(found.step, expected)
    assert found.metrics["rewards/margins"] == pytest.approx(
        found.metrics["rewards/chosen"] - found.metrics["rewards/rejected"]
    )


def test_kto_logs_no_reward_of_answers_that_a_step_has_none_of(first_step: Any, rated: list[dict[str, Any]]) -> None:
    good = [{**row, "label": True} for row in rated]
    metrics = first_step("kto", good, LORA).metrics
    assert "rewards/chosen" in metrics and not {"rewards/rejected", "rewards/margins", "logps/rejected"} & set(metrics)


@pytest.mark.parametrize(
    ("good", "bad", "options", "expected"),
    [
        (50, 60, {}, []),
        (90, 10, {}, ["desirable_weight of 0.111 to 0.148, or a task.undesirable_weight of 6.75 to 9"]),
        (90, 10, {"undesirable_weight": 8.0}, []),
        (5, 0, {}, ["no answer is rated bad; KTO learns from both"]),
    ],
)
def test_kto_says_which_weights_balance_its_data(
    good: int, bad: int, options: dict[str, float], expected: list[str]
) -> None:
    notes = [*KTO(**options).check_data({"rating": [True] * good + [False] * bad})]
    assert len(notes) == len(expected) and all(part in note for part, note in zip(expected, notes, strict=True))


def test_margins_that_a_preference_objective_does_not_read_are_said() -> None:
    assert [*DPO().check_data({"margin": [0.0, 1.5, -2.0]})] == ["`margin` of 2 pairs: not read by DPO"]
    assert [*DPO().check_data({"margin": [0.0]})] == []


@pytest.mark.parametrize(("counted", "expected"), [(True, 3.0), (False, 4.0)])
def test_a_mean_is_that_of_the_rows_of_all_processes(counted: bool, expected: float) -> None:
    """The other process has the values 3 and 5; a batch that only keeps step with the others does not count."""
    computer = object.__new__(TaskLossComputer)
    computer.accelerator = SimpleNamespace(reduce=lambda total: total + torch.tensor([8.0, 2.0]))
    computer.is_counted = counted
    assert computer.mean(torch.tensor([0.0, 4.0])).item() == expected


SLIC = """
import torch
from swiftplug.plugin import PreferenceTask, register_task

@register_task("slic")
class SLiC(PreferenceTask):
    needs_reference = False
    def __init__(self, margin: float = 1.0):
        self.margin = margin
    def pair_loss(self, chosen, rejected):
        return torch.relu(self.margin - chosen.means + rejected.means)
"""


@pytest.fixture
def train_slic(pairs: Any, bare_model_dir: Path, write_jsonl: Any, tmp_path: Path) -> Any:
    """The command line, with an objective in a plugin file."""

    def start(source: str, *options: str) -> int:
        file = tmp_path / "mine.py"
        file.write_text(source)
        line = ["train", "--plugin", str(file), "--task", "slic", "--model", str(bare_model_dir)]
        line += ["--dataset", str(write_jsonl(pairs)), "--output-dir", str(tmp_path / "slic"), *options]
        code: int = app(
            [*line, "--set", "training.max_steps=2", "--set", "training.logging_steps=1"], standalone_mode=False
        )
        return code

    return start


def test_an_objective_of_ten_lines_in_a_file_trains(
    train_slic: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not train_slic(SLIC, "--set", "task.margin=0.5", "--eval-dataset", str(tmp_path / "data.jsonl"))
    printed = capsys.readouterr().out
    assert "plugin: task 'slic' of" in printed and "rewards/margins" in printed and "logps" not in printed
    log = [json.loads(line) for line in (tmp_path / "slic" / "log.jsonl").read_text().splitlines()]
    assert {"rewards/chosen", "rewards/accuracies", "logps/rejected", "loss"} <= log[0].keys()
    assert {"eval_loss", "eval_rewards/margins"} <= {name for entry in log for name in entry}
    record = json.loads((tmp_path / "slic" / "run.json").read_text())
    assert {it["name"]: it["options"] for it in record["plugins"]}["file:slic"] == {"margin": 0.5}


@pytest.mark.parametrize(
    ("returned", "cause"),
    [
        (".mean()", "returned a tensor of shape () from pair_loss, expected one loss per pair, a tensor of shape (6,)"),
        ("[:, None]", "returned a tensor of shape (6, 1) from pair_loss"),
        (".tolist()", "returned a list from pair_loss"),
        (".detach()", "returned a loss without a gradient, expected one that depends on the model"),
        (" / 0 * 0", "the loss 'file:slic' is nan"),
        (" + chosen.ratio", "raised AttributeError: 'SequenceLogps' object has no attribute 'ratio' (mine.py:11)"),
    ],
)
def test_a_wrong_objective_is_named_before_it_reaches_the_weights(train_slic: Any, returned: str, cause: str) -> None:
    with pytest.raises(UserError) as error:
        train_slic(SLIC.rstrip() + returned, "--set", "training.per_device_train_batch_size=6")
    message = str(error.value)
    assert cause in message and "slic" in message and "\n" not in message

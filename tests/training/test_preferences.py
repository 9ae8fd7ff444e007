"""Preference objectives against TRL: the same tokens, loss and gradient at the first step of a real run."""

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOTrainer

from swiftplug.builtin.tasks.preferences import DPO, ORPO
from swiftplug.config.load import load_train_config
from swiftplug.errors import UserError
from swiftplug.plugin import SequenceLogps
from swiftplug.runs.plugins import resolve_plugins

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
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_before_anything_is_read(task: dict[str, Any], cause: str) -> None:
    sets = ["model=/nowhere", "dataset=/nowhere.jsonl", *(f"task.{name}={value}" for name, value in task.items())]
    with pytest.raises(UserError) as error:
        resolve_plugins(load_train_config(None, {"task": "dpo"}, sets).config)
    assert cause in str(error.value) and "\n" not in str(error.value)

"""A real pretrained model, real problems, and a loss and an optimizer of another distribution."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
GSM8K = Path(__file__).parent / "data" / "gsm8k"
Z = 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Path:
    """LoRA on 32 problems, evaluated on 8 others before and after."""
    folder = tmp_path_factory.mktemp("real")
    arguments = [
        *("--model", smollm2_dir, "--dataset", f"{GSM8K}/train.jsonl#32", "--eval-dataset", f"{GSM8K}/test.jsonl#8"),
        *("--tuner", "lora", "--optimizer", "custom", "--loss", "custom_loss", f"--set=loss.z={Z}"),
        *("--output-dir", folder / "run", "--set=training.num_train_epochs=1", "--set=training.eval_on_start=true"),
        *("--set=training.per_device_train_batch_size=4", "--set=training.learning_rate=1e-3"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "swiftplug", "train", *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "custom: Lion, lr 0.0003" in done.stdout
    assert f"custom_loss: cross entropy + {Z:g} * log(Z)^2" in done.stdout
    return folder / "run"


def loss_by_hand(model: torch.nn.Module, tokenizer: Any) -> float:
    """The mean of cross entropy + Z * log(Z)^2 over the answers' tokens, one row at a time."""
    losses = []
    for line in (GSM8K / "test.jsonl").read_text().splitlines()[:8]:
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert ids[: len(prompt)] == prompt
        while ids[-1] != tokenizer.eos_token_id:  # what the template writes behind the end of the turn is not trained
            ids.pop()
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].double()
        log_z = logits.logsumexp(-1)
        targets = torch.tensor(ids[len(prompt) :])
        losses.append(log_z - logits.gather(-1, targets[:, None])[:, 0] + Z * log_z**2)
    return float(torch.cat(losses).mean())


def test_it_learns_and_its_losses_are_those_of_plain_transformers(run: Path, smollm2_dir: Path) -> None:
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    before, *_, after = (entry["eval_loss"] for entry in log if "eval_loss" in entry)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    base = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    assert before == pytest.approx(loss_by_hand(base, tokenizer), rel=1e-4)
    tuned = PeftModel.from_pretrained(base, run)
    assert after == pytest.approx(loss_by_hand(tuned, tokenizer), rel=1e-4)
    assert after < before - 0.1


def test_an_export_is_the_run_for_plain_transformers(run: Path, smollm2_dir: Path) -> None:
    exported = run.with_name("exported")
    command = [sys.executable, "-m", "swiftplug", "export", str(run), "--to", str(exported), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "logits: those of the run" in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(exported)
    messages = [{"role": "user", "content": "三加四等于多少？ And 3 + 5?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    base = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    with torch.no_grad():
        written = AutoModelForCausalLM.from_pretrained(exported).eval()(**ids).logits
        expected = PeftModel.from_pretrained(base, run).eval()(**ids).logits
    assert written.dtype == torch.float32
    assert (written - expected).abs().max() <= 1e-5 * expected.abs().max()

"""A real model answers real problems, scored by scorers of another distribution, and trains on what was kept."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
GSM8K = Path(__file__).parent / "data" / "gsm8k"
QUESTIONS, CANDIDATES, TOKENS = 4, 3, 48


def swiftplug(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", "swiftplug", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Path:
    """The folder of a run that sampled; the references are candidates too, so that something is kept."""
    folder = tmp_path_factory.mktemp("real-sampling")
    told = swiftplug(
        *("sample", "--model", smollm2_dir, "--dataset", f"{GSM8K}/train.jsonl#{QUESTIONS}"),
        *("--orm", "last_number", "--prm", "fresh_steps", "--include-reference", "--output-dir", "run"),
        *("--num-return-sequences", CANDIDATES, "--max-new-tokens", TOKENS, "--temperature", "0.7"),
        cwd=folder,
    )
    assert f"rows: {QUESTIONS} of {QUESTIONS}" in told
    return folder / "run"


def candidates(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "candidates.jsonl").read_text().splitlines()]


def test_every_candidate_has_the_scores_of_both(run: Path) -> None:
    found = candidates(run)
    assert len(found) == QUESTIONS * (CANDIDATES + 1)
    for it in found:
        text = it["messages"][-1]["content"]
        numbers = [re.findall(r"\d[\d,]*(?:\.\d+)?", part) for part in (text, it["reference"])]
        same = bool(numbers[0]) and float(numbers[0][-1].replace(",", "")) == float(numbers[1][-1].replace(",", ""))
        assert it["scores"]["last_number"] == float(same)
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(it["scores"].get("fresh_steps", [])) == len(lines)
        assert (it["reasons"] == []) <= same


def test_the_candidates_are_likely_under_the_model(run: Path, smollm2_dir: Path) -> None:
    """Drawn at temperature 0.7, their tokens are far likelier to plain Transformers than tokens of another answer."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    drawn = [it for it in candidates(run) if it["finish_reason"] != "reference"]
    others = drawn[CANDIDATES:] + drawn[:CANDIDATES]

    def mean_log_likelihood(prompt: list[dict[str, str]], answer: str) -> float:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).mean())

    for it, other in zip(drawn, others, strict=True):
        prompt, answer = it["messages"][:-1], it["messages"][-1]["content"]
        assert mean_log_likelihood(prompt, answer) > -1.5
        assert mean_log_likelihood(prompt, answer) > mean_log_likelihood(other["messages"][:-1], answer)


def test_what_was_kept_can_be_trained_on(run: Path, smollm2_dir: Path) -> None:
    kept = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert kept
    told = swiftplug(
        *("train", "--model", smollm2_dir, "--dataset", "run/samples.jsonl", "--tuner", "lora"),
        *("--output-dir", "trained", "--set=training.max_steps=1", "--set=training.save_strategy=no"),
        cwd=run.parent,
    )
    assert f"{len(kept)} of {len(kept)} rows" in told
    assert (run.parent / "trained" / "adapter_model.safetensors").is_file()


def test_wrong_answers_beside_right_ones_are_pairs_for_dpo(run: Path, smollm2_dir: Path) -> None:
    swiftplug(
        *(
            "sample",
            "--engine",
            "none",
            "--candidates-file",
            "run/candidates.jsonl",
            "--orm",
            "gsm8k",
            "--keep-cut-off",
        ),
        *("--dataset", f"{GSM8K}/train.jsonl#{QUESTIONS}", "--include-reference", "--output-dir", "pairs"),
        cwd=run.parent,
    )
    pairs = [json.loads(line) for line in (run.parent / "pairs" / "samples.jsonl").read_text().splitlines()]
    drawn = {it["messages"][-1]["content"] for it in candidates(run) if it["finish_reason"] != "reference"}
    assert {pair["rejected_response"] for pair in pairs} <= drawn
    swiftplug(
        *("train", "--task", "dpo", "--model", smollm2_dir, "--dataset", "pairs/samples.jsonl", "--tuner", "lora"),
        *("--output-dir", "preferred", "--set=training.max_steps=3", "--set=training.learning_rate=2e-4"),
        *("--set=training.logging_steps=1", "--set=training.save_strategy=no"),
        f"--set=training.per_device_train_batch_size={len(pairs)}",
        cwd=run.parent,
    )
    log = [json.loads(line) for line in (run.parent / "preferred" / "log.jsonl").read_text().splitlines()]
    first, *_, last = (entry for entry in log if "rewards/margins" in entry)
    assert first["loss"] == pytest.approx(math.log(2))
    assert last["loss"] < first["loss"]
    assert last["rewards/margins"] > 0
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)

    def log_likelihood(prompt: list[dict[str, str]], answer: str) -> float:
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = [*prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(whole, return_dict=False)
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # up to the end of the turn
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(start) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(ids[len(start) :])[:, None]).sum())

    for name, answers in {
        "logps/chosen": [pair["messages"][-1]["content"] for pair in pairs],
        "logps/rejected": [pair["rejected_response"] for pair in pairs],
    }.items():
        prompts = [pair["messages"][:-1] for pair in pairs]
        expected = sum(map(log_likelihood, prompts, answers)) / len(pairs)
        assert first[name] == pytest.approx(expected, rel=1e-4)

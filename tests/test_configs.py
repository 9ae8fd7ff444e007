"""Every config of `configs/` loads, and runs to its end on a tiny model."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from swiftplug.config.load import QUICKSTART, load_sample_config, load_train_config
from swiftplug.sampling.run import sample
from swiftplug.training.run import train as train_run
from tests import forks

ROOT = Path(__file__).parents[1]
EVERY = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.yaml"))
CONFIGS = [path for path in EVERY if not path.stem.startswith("sample")]
RUNS_ANYWHERE = {"quickstart", "every_kind"}  # these bring a model of their own
DRAWING = {"grpo", "grpo_gsm8k", "ppo"}  # those of online tasks


def train(config: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Run a config from the root of the repository, as its comment says."""
    return forks.run("train", config, *more, cwd=ROOT)


def test_there_is_one_for_each_thing_that_the_readme_names() -> None:
    assert {path.stem for path in CONFIGS} == {
        *RUNS_ANYWHERE,
        *(
            "sft_lora",
            "sft_full",
            "sft_mixed",
            "pretrain_packed",
            "agent_tools",
            "dpo_lora",
            "classification",
            "rm",
            "prm",
        ),
        *DRAWING,
    }


def test_the_quickstart_is_the_embedded_one_and_no_link() -> None:
    config = ROOT / "configs" / "quickstart.yaml"
    assert config.read_text() == QUICKSTART.read_text()
    assert not config.is_symlink()


def test_the_best_of_n_are_sampled_on_a_tiny_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    line = ["sample", "configs/sample_best_of_n.yaml", "--model", tiny_model_dir, "--max-new-tokens", "8"]
    done = forks.run(*line, "--output-dir", tmp_path / "run", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "rows: 8 of 8" in done.stdout
    candidates = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert len(candidates) == 8 * 8
    assert all(it["scores"].keys() == {"gsm8k", "repetition", "arithmetic"} for it in candidates if it["scores"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_runs_to_its_end(config: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = [] if config.stem in RUNS_ANYWHERE else ["--model", tiny_model_dir]
    shorter = ["--max-new-tokens", "4", "--set", "training.logging_steps=1"] if config.stem in DRAWING else []
    done = train(config, *model, *shorter, "--output-dir", tmp_path / "run", "--set", "training.max_steps=3")
    assert done.returncode == 0, done.stderr
    read = re.findall(r"^(?:train|eval): (\d+) of (\d+) rows", done.stdout, re.MULTILINE)
    assert read
    assert all(used == there for used, there in read)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("train_runtime" in entry for entry in log)
    if load_train_config(str(ROOT / config), {}, []).config.metrics:
        names = {name for entry in log for name in entry}
        assert names & {"eval_acc", "eval_token_acc", "eval_perplexity", "eval_exact_match"}


@pytest.mark.parametrize("task", ["cpo", "simpo", "orpo", "kto"])
def test_the_pairs_serve_the_other_preference_tasks(task: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    given = {"task": task, "model": str(tiny_model_dir), "output_dir": str(tmp_path / "run")}
    sets = ["training.max_steps=2", "training.warmup_steps=0", "data.max_length=512"]
    result = train_run(load_train_config(str(ROOT / "configs" / "dpo_lora.yaml"), given, sets).config)
    assert result is not None
    assert {"loss", "rewards/chosen"} <= result.metrics.keys()


def test_preferences_are_trained_and_evaluated(tiny_model_dir: Path, tmp_path: Path) -> None:
    """From pairs as `sample` writes them; `tests/test_quickstart.py` has the whole loop."""
    folder = ROOT / "configs" / "preferences"
    question, answer = "Tom has 9 pears. He eats 2. How many has he?", "Step 1: 9 - 2 = {0}\n\\boxed{{{0}}}"
    kept = [{"role": "user", "content": question}, {"role": "assistant", "content": answer.format(7)}]
    row = {"messages": kept, "rejected_response": answer.format(6), "scores": {"math": 1.0}}
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [row, row, {"messages": kept}]))
    place = {"model": str(tiny_model_dir), "dataset": [f"{tmp_path}/samples.jsonl"], "output_dir": f"{tmp_path}/run"}
    result = train_run(
        load_train_config(
            str(folder / "dpo.yaml"),
            place,
            ["training.max_steps=2", "training.logging_steps=1", "training.warmup_steps=0"],
        ).config
    )
    assert result is not None
    assert result.metrics["rewards/margins"] > 0
    again = {"model": f"{tmp_path}/run", "output_dir": f"{tmp_path}/evaluated"}
    fewer = ["dataset.arithmetic.size=4", "max_new_tokens=8"]
    sample(load_sample_config(str(folder / "evaluate.yaml"), again, fewer).config)
    assert len((tmp_path / "evaluated" / "candidates.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("config", [path for path in CONFIGS if path.stem in RUNS_ANYWHERE], ids=lambda path: path.stem)
def test_the_whole_of_it_can_be_planned_without_a_model(config: Path, tmp_path: Path) -> None:
    done = train(config, "--output-dir", tmp_path / "run", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_agent_learns_its_calls_at_double_weight_and_nothing_of_the_results(tiny_model_dir: Path) -> None:
    line = ["preview", "configs/agent_tools.yaml", "--model", tiny_model_dir, "--rows=12", "--format=json"]
    done = forks.run(*line, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    plain = [row for row in rows if "".join(row["tokens"]).isascii()]  # where a token of the tiny model is a character
    assert len(rows) == 12
    assert len(plain) >= 9
    for row in plain:
        weighed = list(zip(row["tokens"], row["weights"], strict=True))
        doubled = "".join(token for token, weight in weighed if weight == 2).replace("<|im_end|>", "")
        turns = re.split(r"<\|im_start\|>", "".join(row["tokens"]))
        answers = [turn for turn in turns if turn.startswith("assistant")]
        assert doubled == "".join(re.findall(r"<tool_call>.*?</tool_call>", "".join(answers), re.DOTALL))
        trained = "".join(token for token, weight in weighed if weight)
        assert trained == "".join(re.sub("^assistant\n|\n$", "", turn) for turn in answers)


def test_every_kind_gives_options_to_every_kind() -> None:
    config = load_train_config(str(ROOT / "configs" / "every_kind.yaml"), {}, []).config
    one_each = [config.model, config.tuner, config.optimizer, config.loss, config.loss_scale]
    assert all(choice is not None and choice.options for choice in one_each)
    assert any(choice.options for choice in config.dataset)
    assert any(choice.options for choice in config.metrics)
    assert any(choice.options for choice in config.callbacks)
    assert config.tools.name != "swiftplug:template"

"""Every installed built-in, and every plugin of `plugins_example`, keeps its contract."""

import json
from pathlib import Path
from typing import Any

import pytest

from swiftplug.plugin.registry import FoundPlugin, Registry
from swiftplug.testing import check_plugin

# Options of plugins that need one, and other values of those that take several paths.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "callback lisa": [{"n_layers": 1, "interval": 1}],
    "loss_scale keywords": [{"words": {"Action:": 2.0}, "patterns": {r"\d+": 3.0}}],
    "optimizer galore": [{"rank": 4, "update_proj_gap": 2}],
    "optimizer pytorch_optimizer": [{"algorithm": "lion"}],
    "orm cosine": [{"max_chars": 200}],
    "orm length": [{"max_chars": 200}],
    "task dpo": [{}, {"rpo_alpha": 1.0, "length_normalization": True}],
    "task orpo": [{}, {"nll_on_prompt": True}],
    "task rm": [{"center_rewards_coefficient": 0.1}],
    "task seq_cls": [{}, {"problem": "multi"}, {"problem": "regression"}],
    "tuner freeze": [{"train": ["layers.1"]}],
    "tuner lora": [{"lora_dropout": 0.1}, {"modules_to_save": ["embed_tokens"], "use_dora": True}],
    "tuner peft": [{"type": "vera", "r": 4, "target_modules": ["q_proj", "v_proj"]}],
}
NOT_HERE = {
    "engine none": "it generates nothing",
    "engine vllm": "it needs vLLM",
}


def installed() -> list[Any]:
    """Each plugin of this repository with options to check it with."""
    return [
        pytest.param(found, options, id=f"{found.kind} {found.name} {json.dumps(options) if options else ''}".strip())
        for found in Registry.discover(allow=["swiftplug-plugins-example", "swiftplug-vllm"]).found()
        for options in OPTIONS.get(f"{found.kind} {found.name}", [{}])
    ]


@pytest.mark.parametrize(("found", "options"), installed())
def test_keeps_its_contract(found: FoundPlugin, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    key = f"{found.kind} {found.name}"
    if key in NOT_HERE:
        pytest.skip(NOT_HERE[key])
    if found.extras and Registry.discover().check(found).status == "needs an extra":
        pytest.skip(f"it needs the extra {found.extras[0]}")
    if found.name == "similar_question":
        options = {"file": str(request.getfixturevalue("known_answers"))}
    elif key == "engine openai":
        server = request.getfixturevalue("openai_server")(lambda asked: f"about {len(asked.text)}")
        options = {"base_url": server.base_url}
    elif key == "prm client":
        server = request.getfixturevalue("openai_server")(lambda asked: "[0.5]")
        options = {"base_url": server.base_url, "model": "judge"}
    elif found.name == "reward_model":
        options = {"model": str(request.getfixturevalue(f"{found.kind}_model"))}
    check_plugin(found.kind, found.qualified_name, **options)


@pytest.fixture
def known_answers(write_jsonl: Any) -> Path:
    """Questions and answers for an engine that looks for similar ones."""
    pairs = [("What is 2 + 2?", "4"), ("What is 3 + 3?", "6"), ("二加二等于几?", "四")]
    rows = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in pairs]
    return Path(write_jsonl([{"messages": messages} for messages in rows]))


def _classifier(base: Path, folder: Path, kind: str, labels: int) -> Path:
    import transformers

    auto: Any = getattr(transformers, f"AutoModelFor{kind}Classification")
    auto.from_pretrained(base, num_labels=labels).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def orm_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model of random weights."""
    return _classifier(tiny_model_dir, tmp_path_factory.mktemp("orm"), "Sequence", 1)


@pytest.fixture(scope="session")
def prm_model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny process reward model of random weights."""
    return _classifier(tiny_model_dir, tmp_path_factory.mktemp("prm"), "Token", 2)

"""The scorer `reward_model`: against Transformers, one conversation at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForTokenClassification,
)

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.plugin.rewards import InferRequest, Unscored
from swiftplug.runs.plugins import resolve_plugins

REGISTRY = Registry.discover()
SMALL = {"vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "eos_token_id": 2}
SMALL |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None}

ANSWERS = [
    "42",
    "Step 1: 6 * 7 = 42\nStep 2: so it is 42\n\nThe answer is 42",
    "I do not know, " * 9,
    "First, two.\nThen three.",
    "x",
    "One line and nothing else",
    "\n".join(f"Step {number}: go on" for number in range(12)),
]
REQUESTS = [
    InferRequest([{"role": "user", "content": "What is 6 * 7?"[: 3 + index]}, {"role": "assistant", "content": answer}])
    for index, answer in enumerate(ANSWERS)
]


def scorer(kind: str, model: Path | str, **options: Any) -> Any:
    choice = PluginChoice(name="reward_model", options={"model": str(model), "dtype": "float32", **options})
    return REGISTRY.resolve(kind, choice, f"--{kind}").bound


def test_a_revision_of_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    given: dict[str, Any] = {"model": "tiny", "dataset": ["d"], "engine": "none"}
    for orm in (["org/name@v2"], [{"name": "org/name", "revision": "v2"}], ["org/name"]):
        with pytest.raises(UserError, match="'org/name' is not a folder, and cannot be loaded from the hub"):
            resolve_plugins(SampleConfig.model_validate({**given, "orm": orm}))
    assert asked == [("org/name", "config.json", revision) for revision in ("v2", "v2", None)]


@pytest.fixture
def lay(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Path]:
    """Save a checkpoint of random weights beside the tiny tokenizer."""

    def lay(make: Any, config: Any) -> Path:
        torch.manual_seed(5)
        model = make(config)
        for parameter in model.parameters():
            parameter.data *= 3
        model.save_pretrained(tmp_path / "reward")
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "reward")
        return tmp_path / "reward"

    return lay


@torch.no_grad()
def logits_of(folder: Path, make: Any, ids: list[int]) -> torch.Tensor:
    model = make.from_pretrained(folder, dtype=torch.float32).eval()
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


# 2 ends every turn: as a padding token it is passed over, with none the text ends where it ends.
@pytest.mark.parametrize("pad_token_id", [0, 2, None])
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_a_sequence_classifier_scores_answers(
    lay: Callable[..., Path], kind: str, labels: int, pad_token_id: int | None
) -> None:
    config = LlamaConfig(**SMALL, num_labels=labels, pad_token_id=pad_token_id)
    folder = lay(LlamaForSequenceClassification, config)
    judge = scorer(kind, folder, batch_size=3)
    rewards = judge(REQUESTS, [None] * len(REQUESTS)) if kind == "orm" else judge(REQUESTS, ground_truths=[])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for request, reward in zip(REQUESTS, rewards, strict=True):
        logits = logits_of(
            folder, LlamaForSequenceClassification, tokenizer.apply_chat_template(request.messages)["input_ids"]
        )
        expected = logits[0] if labels == 1 else logits.softmax(dim=-1)[1]
        assert reward == pytest.approx(expected.item(), abs=1e-5)
    assert len({round(reward, 4) for reward in rewards}) == len(REQUESTS)


@pytest.mark.parametrize("separator", ["\n", "\n\n", "#"])
def test_a_token_classifier_scores_steps(lay: Callable[..., Path], separator: str) -> None:
    folder = lay(Qwen2ForTokenClassification, Qwen2Config(**SMALL, num_labels=2, pad_token_id=0))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    model = scorer("prm", folder, batch_size=3, step_separator=separator)
    rewards = model(REQUESTS, ground_truths=[])
    worst = scorer("orm", folder, step_separator=separator)(REQUESTS, [None] * len(REQUESTS))
    for request, of_steps, of_answer in zip(REQUESTS, rewards, worst, strict=True):
        ids = list(tokenizer.apply_chat_template(request.messages[:1], add_generation_prompt=True)["input_ids"])
        expected, ends, answer = [], [], request.messages[-1]["content"]
        for step in answer.split(separator):
            if step:
                ends.append(answer.index(step, ends[-1] if ends else 0) + len(step))
                ids += plain(step) + plain(separator)
                expected.append(logits_of(folder, Qwen2ForTokenClassification, ids)[-1].softmax(dim=-1)[1].item())
        assert of_steps == pytest.approx(expected, abs=1e-5)
        assert model.step_ends(answer) == ends
        assert of_answer == pytest.approx(min(expected), abs=1e-5)


def test_what_cannot_be_scored_has_a_reason_and_does_no_harm(lay: Callable[..., Path]) -> None:
    folder = lay(Qwen2ForTokenClassification, Qwen2Config(**SMALL, pad_token_id=0))
    long, empty = "a" * 600, " \n "
    requests = [
        REQUESTS[1],
        InferRequest([{"role": "user", "content": "q"}, {"role": "assistant", "content": long}]),
        InferRequest([{"role": "user", "content": "q"}, {"role": "assistant", "content": empty}]),
        InferRequest([{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]),
    ]
    first, too_long, without, refused = scorer("prm", folder)(requests, ground_truths=[])
    assert first == scorer("prm", folder)([REQUESTS[1]], ground_truths=[])[0]
    assert too_long.reason.endswith("tokens, the reward model reads at most 512")
    assert without == Unscored("it has no step")
    assert refused.reason.startswith("the reward model's chat template refuses it: ")


def test_it_needs_no_reference_and_does_not_judge(lay: Callable[..., Path]) -> None:
    judge = scorer("orm", lay(LlamaForSequenceClassification, LlamaConfig(**SMALL, num_labels=1)))
    assert not judge.needs_reference
    assert judge.right_from is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"the folder '.*' has no config.json; expected a checkpoint"),
        ({"architectures": ["LlamaForCausalLM"]}, r"is a LlamaForCausalLM; expected one ForSequenceClassification or "),
        ({}, r"is a model of no named architecture; expected one ForSequenceClassification or "),
        (
            {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}},
            r"has 3 labels; expected 1, or 2, the second for a right answer",
        ),
        (
            {"architectures": ["XForTokenClassification"], "id2label": {"0": "a"}},
            r"has 1 labels; expected 2, the second for a right step",
        ),
    ],
)
def test_another_checkpoint_is_refused_before_anything_is_loaded(
    tmp_path: Path, config: dict[str, Any] | None, message: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        scorer("orm", tmp_path)


def test_an_id_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"reward_model: 'no-one/no-such-model' is not a folder, and cannot be loaded from the hub"
    ):
        scorer("prm", "no-one/no-such-model")


def test_a_checkpoint_without_weights_is_reported_in_a_line(lay: Callable[..., Path]) -> None:
    folder = lay(LlamaForSequenceClassification, LlamaConfig(**SMALL, num_labels=1))
    (folder / "model.safetensors").unlink()
    judge = scorer("orm", folder)
    with pytest.raises(UserError, match=r"reward_model: cannot load '.*'") as error:
        judge(REQUESTS, [None] * len(REQUESTS))
    assert "\n" not in str(error.value)


def test_checking_it_imports_no_torch(lay: Callable[..., Path]) -> None:
    folder = lay(LlamaForSequenceClassification, LlamaConfig(**SMALL, num_labels=1))
    code = (
        "import sys; from swiftplug.plugin.registry import Registry\n"
        "from swiftplug.plugin.registry import PluginChoice\n"
        f"choice = PluginChoice(name='reward_model', options={{'model': {str(folder)!r}}})\n"
        "Registry.discover().resolve('orm', choice, '--orm'); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"

"""The metrics acc, perplexity and nlg, against other ways to compute the same."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, EvalPrediction

from swiftplug.errors import UserError
from swiftplug.plugin.registry import BoundMetric, PluginChoice, Registry

REGISTRY = Registry.discover()


def metric(name: str, **options: Any) -> BoundMetric:
    bound = REGISTRY.resolve("metric", PluginChoice(name=name, options=options), "--metric").bound
    assert isinstance(bound, BoundMetric)
    return bound


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels, with a row without labels, one with a label in front (which nothing predicts), and padding."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, 7, generator=generator) * 3
    labels = torch.randint(0, 7, (5, 9), generator=generator)
    labels[:3, :4] = -100
    labels[1, 6:] = -100
    labels[2] = -100
    labels[3, 2:] = -100
    labels[3, 0:2] = logits[3, 0].argmax()  # all of this row is right
    return logits, labels


def test_acc_counts_tokens_and_rows() -> None:
    logits, labels = batch()
    acc = metric("acc")
    assert acc.preprocess is None
    tokens, rows = [], []
    for row in range(5):
        right = [
            int(logits[row, position - 1].argmax()) == int(labels[row, position])
            for position in range(1, 9)
            if labels[row, position] != -100
        ]
        tokens += right
        rows += [all(right)] if right else []
    found = acc.compute(EvalPrediction(predictions=logits.argmax(-1).numpy(), label_ids=labels.numpy()))
    assert found == pytest.approx({"token_acc": sum(tokens) / len(tokens), "seq_acc": sum(rows) / len(rows)})
    assert 0 < found["seq_acc"] < 1


def test_acc_is_not_fooled_by_padding() -> None:
    """Trainer fills up predictions, too, with -100."""
    predictions, labels = np.array([[5, 6, -100, -100]]), np.array([[-100, 5, 6, -100]])
    assert metric("acc").compute(EvalPrediction(predictions, labels)) == {"token_acc": 1.0, "seq_acc": 1.0}


def test_perplexity_is_that_of_the_models_own_loss(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = torch.randint(3, 250, (1, 30), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :11] = -100
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    perplexity = metric("perplexity")
    assert perplexity.preprocess is not None
    kept = perplexity.preprocess(output.logits, labels)
    assert kept.shape == labels.shape
    found = perplexity.compute(EvalPrediction(predictions=kept.numpy(), label_ids=labels.numpy()))
    assert found == {"perplexity": pytest.approx(math.exp(output.loss.item()), rel=1e-5)}


def test_perplexity_weighs_every_token_alike_over_batches() -> None:
    """Ragged batches, filled up as Trainer does: the mean is over tokens, not over batches or rows."""
    logits, labels = batch()
    perplexity = metric("perplexity")
    assert perplexity.preprocess is not None
    first = perplexity.preprocess(logits[:3, :7].bfloat16(), labels[:3, :7])
    second = perplexity.preprocess(logits[3:], labels[3:])
    pad = torch.nn.functional.pad
    predictions = torch.cat([pad(first, (0, 2), value=-100), second])
    label_ids = torch.cat([pad(labels[:3, :7], (0, 2), value=-100), labels[3:]])
    rounded = torch.cat([logits[:3].bfloat16().float(), logits[3:]]).double().numpy()
    probabilities = np.exp(rounded) / np.exp(rounded).sum(-1, keepdims=True)
    logs = [
        math.log(probabilities[row, position - 1, label_ids[row, position]])
        for row in range(5)
        for position in range(1, 9)
        if label_ids[row, position] != -100
    ]
    found = perplexity.compute(EvalPrediction(predictions.numpy(), label_ids.numpy()))
    assert found == {"perplexity": pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-5)}


def test_perplexity_at_its_ends() -> None:
    compute = metric("perplexity").compute
    labels = np.array([[-100, 1]])
    assert compute(EvalPrediction(np.array([[800.0, 0.0]]), labels)) == {"perplexity": math.inf}
    assert math.isnan(compute(EvalPrediction(np.zeros((1, 2)), np.full((1, 2), -100)))["perplexity"])


ENGLISH = [
    ("The quick brown fox jumps over the lazy dog.", "The quick brown dog jumps over the lazy cat today."),
    ("It is 18 dollars, isn't it?", "She makes 18 dollars a day at the farmers' market."),
    ("", "An empty answer scores nothing."),
    ("the_same words, twice: the same words", "The same words twice"),
]


def test_nlg_on_english_is_rouge_scores_own() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = metric("nlg").compute(*map(list, zip(*ENGLISH, strict=True)))
    for name in ("rouge1", "rouge2", "rougeL"):
        scores = [scorer.score(reference, answer)[name].fmeasure for answer, reference in ENGLISH]
        assert found[name] == pytest.approx(100 * sum(scores) / len(scores)), name


@pytest.mark.parametrize(
    ("language", "pairs"),
    [
        ("13a", ENGLISH),
        (
            "zh",
            [
                ("今天天气很好,我们去公园。", "今天的天气很好,我们一起去公园散步。"),
                ("答案是 18 美元", "答案是 18 美元。"),
            ],
        ),
    ],
)
def test_nlg_bleu_is_what_the_command_line_of_sacrebleu_prints(
    tmp_path: Path, language: str, pairs: list[tuple[str, str]]
) -> None:
    pytest.importorskip("sacrebleu")
    answers, references = map(list, zip(*pairs, strict=True))
    (tmp_path / "answers").write_text("\n".join(answers) + "\n", encoding="utf-8")
    (tmp_path / "references").write_text("\n".join(references) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "answers", "-tok", language, "-w", "6"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert metric("nlg").compute(answers, references)["bleu4"] == pytest.approx(json.loads(printed)["score"], abs=1e-6)


def test_nlg_on_chinese_by_hand() -> None:
    """The words are 我/来到/北京/清华大学 and 我/来到/清华大学; a full stop is none."""
    pytest.importorskip("jieba")
    found = metric("nlg").compute(["我来到北京清华大学。"], ["我来到清华大学"])
    # 4 words against 3, all 3 of the reference in order: precision 3/4, recall 1. Of its 2 pairs one is there, of 3.
    assert found["rouge1"] == pytest.approx(100 * 2 * 0.75 / 1.75)
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert found["rougeL"] == pytest.approx(100 * 2 * 0.75 / 1.75)


def test_nlg_mixes_scripts() -> None:
    """English words count among Chinese ones, and letters beyond ASCII do not fall apart."""
    nlg = metric("nlg")
    assert nlg.compute(["naïve"], ["na ve"])["rouge1"] == 0
    assert nlg.compute(["用Python写代码"], ["Python"])["rouge1"] == pytest.approx(100 * 2 * 0.25 / 1.25)
    assert nlg.compute(["", ""], ["天", "sky"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0, "bleu4": 0}


def test_nlg_declares_how_much_to_generate() -> None:
    assert metric("nlg").generate
    assert metric("nlg").max_new_tokens == 256
    assert metric("nlg", max_new_tokens=17).max_new_tokens == 17


CLASSES = [2, 0, 1, 1, 2, 0, 2, 2], [2, 0, 0, 1, 2, 1, 2, 1]  # labels, predictions
SEVERAL = [[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0]]
NUMBERS = [1.0, 2.5, -1.0, 4.0], [1.5, 2.0, 0.0, 3.0]


def computed(name: str, pair: tuple[list[Any], list[Any]]) -> dict[str, float]:
    labels, predictions = (np.array(each) for each in pair)
    return metric(name).compute(EvalPrediction(predictions, labels))


def harmonic_means(labels: Any, predictions: Any) -> list[float]:
    """By class: twice the right ones over all that are labelled or predicted so."""
    return [2 * (of & to).sum() / max(of.sum() + to.sum(), 1) for of, to in zip(labels, predictions, strict=True)]


def test_metrics_of_classes_follow_their_definitions() -> None:
    labels, predictions = (np.array(each) for each in CLASSES)
    one_hot = [np.array([each == value for value in range(3)]) for each in (labels, predictions)]
    assert computed("acc", CLASSES) == {"acc": pytest.approx(5 / 8)}
    assert computed("f1", CLASSES) == {"f1": pytest.approx(np.mean(harmonic_means(*one_hot)))}
    # Gorodkin's R_K is a correlation: the covariances of the one-hot labels and predictions, summed over classes.
    (x, y) = ((each - each.mean(axis=1, keepdims=True)).ravel() for each in one_hot)
    assert computed("mcc", CLASSES) == {"mcc": pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))}


def test_metrics_of_several_labels_follow_their_definitions() -> None:
    labels, predictions = (np.array(each).T.astype(bool) for each in SEVERAL)
    assert computed("acc", SEVERAL) == {"acc": pytest.approx(2 / 4)}
    assert computed("f1", SEVERAL) == {"f1": pytest.approx(np.mean(harmonic_means(labels, predictions)))}


def test_metrics_of_numbers_follow_their_definitions() -> None:
    labels, predictions = (np.array(each) for each in NUMBERS)
    assert computed("rmse", NUMBERS) == {"rmse": pytest.approx(np.sqrt(((labels - predictions) ** 2).mean()))}
    x, y = labels - labels.mean(), predictions - predictions.mean()
    assert computed("pearson", NUMBERS) == {"pearson": pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))}
    assert math.isnan(computed("pearson", ([1.0, 1.0], [1.0, 2.0]))["pearson"])


@pytest.mark.parametrize(
    ("name", "pair"),
    [("acc", NUMBERS), ("f1", NUMBERS), ("mcc", NUMBERS), ("mcc", SEVERAL), ("rmse", CLASSES), ("pearson", SEVERAL)],
)
def test_a_metric_refuses_labels_of_which_it_says_nothing(name: str, pair: tuple[list[Any], list[Any]]) -> None:
    with pytest.raises(UserError, match=f"metric {name} "):
        computed(name, pair)

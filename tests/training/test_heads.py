"""Losses on labelled positions equal the model's own loss, for heads of every known form and for unknown ones."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    TrainingArguments,
)

from swiftplug.builtin.losses.token_losses import CrossEntropy
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.training.chunked_losses import token_loss_sum
from swiftplug.training.head import find_known_head, run_headless
from swiftplug.training.loss import PluginLossComputer

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gemma2-softcap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
    "granite-divided": GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere-scaled": CohereConfig(**SMALL, logit_scale=0.25),
    "gpt2": GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5),
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # logits far enough from 0 to tell the forms apart
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (3, 17))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 9:] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk_size", [3, 1000])
def test_loss_and_gradient_equal_the_model_s_own(name: str, chunk_size: int) -> None:
    model, data = build(name), batch()
    outputs = model(**data)
    aux = getattr(outputs, "aux_loss", None)
    expected = outputs.loss - (0.5 * aux if aux is not None else 0.0)
    expected.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    head = find_known_head(model)
    assert head is not None
    _, hidden = run_headless(model, head, {"input_ids": data["input_ids"]})
    targets = data["labels"][:, 1:]
    trained = targets != -100
    hidden = hidden[:, :-1][trained]
    total = token_loss_sum(CrossEntropy().token_loss, head, hidden, targets[trained], None, chunk_size)
    found = total / trained.sum()
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for key, p in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(p.grad, gradients[key], rtol=1e-3, atol=1e-6)


def test_a_head_of_another_form_is_not_taken_for_a_known_one() -> None:
    model = build("llama")
    forward = type(model).forward

    def squared(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(model, *args, **kwargs)
        outputs.logits = outputs.logits**2 / 10
        return outputs

    model.forward = squared
    assert find_known_head(model) is None


def test_the_auxiliary_loss_is_part_of_training_and_not_of_evaluation() -> None:
    model, data = build("mixtral"), batch()
    plugin = Registry.discover().resolve("loss", PluginChoice(name="cross_entropy"), "--loss")
    arguments = TrainingArguments(use_cpu=True)  # before the accelerator, whose state it resets
    computer = PluginLossComputer(plugin, model, Accelerator(cpu=True), arguments)
    counts, outputs = computer.counts(data), model(**data)
    plain = outputs.loss - 0.5 * outputs.aux_loss
    torch.testing.assert_close(computer(model, data, counts).loss, plain)
    torch.testing.assert_close(computer(model.train(), data, counts).loss, outputs.loss)


def test_a_batch_of_which_no_row_counts_adds_nothing() -> None:
    """Nor does it where a loss is a mean, which of none is not a number."""
    model, data = build("llama"), {**batch(), "length": torch.tensor([17, 9, 17])}
    plugin: Any = SimpleNamespace(
        found=SimpleNamespace(qualified_name="mean", version=""),
        bound=lambda outputs, labels: cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()),
    )
    arguments = TrainingArguments(use_cpu=True)
    computer = PluginLossComputer(plugin, model, Accelerator(cpu=True), arguments)
    none = computer.first_rows(data, 0)
    assert computer.counts(none) == {"tokens": 0}
    computed = computer(model, none, computer.counts(data))
    assert (computed.loss.item(), computed.sums["tokens"].item()) == (0, 0)

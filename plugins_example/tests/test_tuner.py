from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from swiftplug_plugins_example.tuner import BitFit


def base_model(seed: int = 0, **config: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **(sizes | config)))


def trained_names(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_norms_and_biases_train() -> None:
    model = BitFit.prepare_model(None, base_model(attention_bias=True))
    names = trained_names(model)
    assert len(names) == 2 * 2 + 1 + 2 * 4  # two norms a layer, the last one, and q, k, v, o biases
    assert all(name.endswith(("norm.weight", "bias")) for name in names)


def test_the_pattern_chooses() -> None:
    model = BitFit.prepare_model(None, base_model(), trains=r"^model\.norm")
    assert trained_names(model) == ["model.norm.weight"]


def test_only_what_trains_is_saved_and_nothing_trains_in_sampling(tmp_path: Path) -> None:
    model = BitFit.prepare_model(None, base_model())
    BitFit.save_pretrained(model, str(tmp_path))
    assert set(load_file(tmp_path / "bitfit.safetensors")) == set(trained_names(model))
    assert trained_names(BitFit.from_pretrained(base_model(), str(tmp_path))) == []


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    BitFit.save_pretrained(BitFit.prepare_model(None, base_model()), str(tmp_path))
    with pytest.raises(ValueError, match=r"another base model: this one has no 'model\.layers\.1"):
        BitFit.from_pretrained(base_model(num_hidden_layers=1), str(tmp_path))

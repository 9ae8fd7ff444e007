from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swiftplug.scaffold.package.tuner import LastLayers

ARGS: Any = None  # this tuner does not read the run's arguments


def base_model(num_layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=num_layers))


def test_the_last_layers_train() -> None:
    model = LastLayers.prepare_model(ARGS, base_model(), layers=2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {".".join(name.split(".")[:3]) for name in trained} == {"model.layers.1", "model.layers.2"}


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    LastLayers.save_pretrained(LastLayers.prepare_model(ARGS, base_model()), str(tmp_path))
    with pytest.raises(ValueError, match=r"another base model: this one has no model\.layers\.2"):
        LastLayers.from_pretrained(base_model(num_layers=2), str(tmp_path))

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swiftplug.scaffold.package.tuner import LastLayers

ARGS: Any = None  # this tuner does not read the run's arguments
IDS = torch.arange(12).reshape(2, 6)


def base_model(num_layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=num_layers))


def layers_trained(model: torch.nn.Module) -> set[str]:
    return {".".join(name.split(".")[:3]) for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trained_comes_back_and_trains_on(tmp_path: Path) -> None:
    model = LastLayers.prepare_model(ARGS, base_model(), layers=2)
    assert layers_trained(model) == {"model.layers.1", "model.layers.2"}
    model(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0).step()
    LastLayers.save_pretrained(model, str(tmp_path))

    opened = LastLayers.from_pretrained(base_model(), str(tmp_path), is_trainable=True)
    assert layers_trained(opened) == layers_trained(model)
    assert torch.equal(opened(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert not torch.equal(opened(input_ids=IDS).logits, base_model()(input_ids=IDS).logits)


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    LastLayers.save_pretrained(LastLayers.prepare_model(ARGS, base_model()), str(tmp_path))
    with pytest.raises(ValueError, match=r"another base model: this one has no model\.layers\.2"):
        LastLayers.from_pretrained(base_model(num_layers=2), str(tmp_path))

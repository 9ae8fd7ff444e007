"""The parts of real architectures, tiny and random, and PEFT as the judge of which linear layers there are."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from swiftplug.plugin import MODEL_ARCH_MAPPING, ModelKeys, find_all_linears
from swiftplug.plugin.model_arch import attach_model_meta

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
MOE = GROUPED | {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "gpt2": SIZES,
    "mixtral": MOE,
    "qwen2_moe": MOE | {"shared_expert_intermediate_size": 16},
    "phi3": GROUPED,
    "phi": SIZES,
    "gemma": GROUPED | {"head_dim": 8},
    "gpt_neox": SIZES,
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": SIZES,
    "gpt_neo": {**SIZES, "num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
}
LLAMA = {
    "embedding": "model.embed_tokens",
    "module_list": "model.layers",
    "lm_head": "lm_head",
    "attention": "model.layers.{}.self_attn",
    "q_proj": "model.layers.{}.self_attn.q_proj",
    "k_proj": "model.layers.{}.self_attn.k_proj",
    "v_proj": "model.layers.{}.self_attn.v_proj",
    "o_proj": "model.layers.{}.self_attn.o_proj",
    "mlp": "model.layers.{}.mlp",
    "down_proj": "model.layers.{}.mlp.down_proj",
}
NEOX = "gpt_neox.layers.{}"
EXPECTED: dict[str, dict[str, str | None]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma": LLAMA,
    "mixtral": LLAMA | {"down_proj": None},  # its experts are no linear layers
    "qwen2_moe": LLAMA | {"down_proj": "model.layers.{}.mlp.shared_expert.down_proj"},
    "phi": LLAMA | {"o_proj": "model.layers.{}.self_attn.dense", "down_proj": "model.layers.{}.mlp.fc2"},
    "phi3": LLAMA | {"q_proj": None, "k_proj": None, "v_proj": None, "qkv_proj": "model.layers.{}.self_attn.qkv_proj"},
    "gpt2": {
        "embedding": "transformer.wte",
        "module_list": "transformer.h",
        "lm_head": "lm_head",
        "attention": "transformer.h.{}.attn",
        "qkv_proj": "transformer.h.{}.attn.c_attn",
        "o_proj": "transformer.h.{}.attn.c_proj",
        "mlp": "transformer.h.{}.mlp",
        "down_proj": "transformer.h.{}.mlp.c_proj",
    },
    "gpt_neox": {
        "embedding": "gpt_neox.embed_in",
        "module_list": "gpt_neox.layers",
        "lm_head": "lm_head" if Version(transformers.__version__) >= Version("5.14") else "embed_out",
        "attention": f"{NEOX}.attention",
        "qkv_proj": f"{NEOX}.attention.query_key_value",
        "o_proj": f"{NEOX}.attention.dense",
        "mlp": f"{NEOX}.mlp",
        "down_proj": f"{NEOX}.mlp.dense_4h_to_h",
    },
}


def build(arch: str) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **CONFIGS[arch]))


@pytest.mark.parametrize("arch", CONFIGS)
def test_every_path_leads_to_a_module_of_every_layer(arch: str) -> None:
    model = build(arch)
    attach_model_meta(model)
    keys = MODEL_ARCH_MAPPING[model.model_meta.model_arch]
    assert isinstance(keys, ModelKeys)
    assert keys.arch_name == arch
    assert keys.module_list is not None
    assert len(model.get_submodule(keys.module_list)) == 2
    assert model.get_submodule(keys.embedding) is model.get_input_embeddings()
    assert model.get_submodule(keys.lm_head) is model.get_output_embeddings()
    for path in (keys.attention, keys.mlp, keys.o_proj):
        assert path is not None
        for layer in range(2):
            assert any(it.dim() > 1 for it in model.get_submodule(path.format(layer)).parameters())
    assert keys.attention != keys.mlp


@pytest.mark.parametrize("arch", EXPECTED)
def test_the_paths_of_known_architectures(arch: str) -> None:
    model = build(arch)
    attach_model_meta(model)
    found = vars(MODEL_ARCH_MAPPING[arch])
    expected = dict.fromkeys(found) | EXPECTED[arch] | {"arch_name": arch}
    assert found == expected


def test_all_linears_of_a_mixture_are_its_linear_layers() -> None:
    """PEFT's `all-linear` has a rule of its own for Mixtral's experts, whose weights are no layers."""
    assert find_all_linears(build("mixtral")) == ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("arch", sorted(CONFIGS.keys() - {"mixtral"}))
def test_all_linears_are_those_that_peft_would_tune(arch: str) -> None:
    def tuned(target: Any) -> set[str]:
        model = get_peft_model(build(arch), LoraConfig(target_modules=target, r=2, task_type="CAUSAL_LM"))
        return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}

    names = find_all_linears(build(arch))
    assert names == sorted(set(names))
    assert tuned(names) == tuned("all-linear")


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "phi3"])
def test_the_documented_use_of_both_makes_an_ia3_model(arch: str) -> None:
    model = build(arch)
    attach_model_meta(model)
    mlp = MODEL_ARCH_MAPPING[model.model_meta.model_arch].mlp
    assert mlp is not None
    assert model.model_meta.model_arch.mlp == mlp  # as later versions of SWIFT 3 write it
    config = IA3Config(target_modules=find_all_linears(model), feedforward_modules=f".*{mlp.split('{}.')[1]}.*")
    tuned = get_peft_model(model, config)
    flags = {module.is_feedforward for _, module in tuned.named_modules() if hasattr(module, "is_feedforward")}
    assert flags == {True, False}


def test_quantized_linears_count_whatever_library_they_are_of() -> None:
    class QuantLinear(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.qweight = nn.Parameter(inner.weight.detach().to(torch.int8), requires_grad=False)

    model = build("llama")
    plain = find_all_linears(model)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, QuantLinear(child))
    assert find_all_linears(model) == plain
    attach_model_meta(model)
    assert MODEL_ARCH_MAPPING["llama"].down_proj == LLAMA["down_proj"]


def test_a_name_shared_with_something_else_is_given_whole() -> None:
    model = build("llama")
    model.model.layers[0].mlp.lm_head = nn.Linear(2, 2)  # as the head is called, which must not be tuned
    model.model.layers[0].mlp.proj = nn.Linear(2, 2)
    model.model.layers[1].mlp.proj = nn.Conv1d(2, 2, 1)
    names = find_all_linears(model)
    assert {"model.layers.0.mlp.lm_head", "model.layers.0.mlp.proj"} <= set(names)
    assert not {"lm_head", "proj"} & set(names)


def test_what_an_author_wrote_into_the_mapping_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModelKeys(arch_name="llama", mlp="model.layers.{}.mine")
    monkeypatch.setitem(MODEL_ARCH_MAPPING, "llama", mine)
    model = build("llama")
    attach_model_meta(model)
    assert MODEL_ARCH_MAPPING[model.model_meta.model_arch] is mine

"""The engine `vllm` as far as it can be seen without vLLM, which needs a GPU: what it would load, what it refuses."""

import importlib.util
import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from swiftplug.builtin.engines.vllm_model import VLLMModel, find_model
from swiftplug.config.schema import ModelOptions, SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import Registry
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.runs.marker import Marker, write_marker
from swiftplug.sampling.arguments import SampleArguments

OPTIONS = {"revision": "v1", "quantization": "4bit", "trust_remote_code": True}

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


@without_vllm
def test_without_the_extra_it_says_what_to_install():
    registry = Registry.discover()
    (found,) = [it for it in registry.found("engine") if it.name == "vllm"]
    check = registry.check(found)
    assert check.status == "needs an extra"
    assert "pip install 'swiftplug[vllm]'" in check.cause
    with pytest.raises(UserError, match=r"--engine: .*needs vllm.*pip install 'swiftplug\[vllm\]'"):
        registry.resolve("engine", PluginChoice(name="vllm"), "--engine")


def find(model=None, adapter=None, **config):
    registry = Registry.discover()
    choice = PluginChoice(name=str(model)) if model else None
    plugin = registry.resolve("model", choice, "--model") if choice and registry.has("model", choice.name) else None
    fields = {"model": str(model) if model else None, "adapter": str(adapter) if adapter else None, **config}
    args = SampleArguments(SampleConfig.model_validate(fields), registry, plugin)
    return find_model(args.model_request(torch.float32, torch.float32), args.adapter)


@pytest.fixture
def adapter(tiny_model_dir, tmp_path):
    """Save an adapter of PEFT, as a run does when `base` is given."""

    def save(config, name="adapter", base=tiny_model_dir, run=True):
        folder = tmp_path / name
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config).save_pretrained(folder)
        if run:
            write_marker(folder, Marker({"name": str(base)}, OPTIONS, 42, {"name": "swiftplug:lora"}))
        return folder

    return save


def lora(**fields):
    return LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **fields)


def test_a_whole_model(tiny_model_dir):
    place = str(tiny_model_dir)
    assert find(tiny_model_dir) == VLLMModel(place, ModelOptions(), place, None, 8)
    hub = find("org/name", model_options={"revision": "v2"})
    assert (hub.model, hub.options.revision, hub.tokenizer) == ("org/name", "v2", "org/name")


@pytest.mark.parametrize(("r", "room"), [(1, 8), (8, 8), (9, 16), (300, 320)])
def test_a_lora_run_goes_on_its_base_model(tiny_model_dir, adapter, r, room):
    folder = adapter(lora(r=r))
    expected = VLLMModel(
        str(tiny_model_dir), ModelOptions(revision="v1", quantization="4bit"), str(folder), str(folder), room
    )
    assert find(folder) == expected
    alone = find(adapter=folder)  # as `--adapter` without `--model`
    assert (alone.model, alone.adapter, alone.tokenizer) == (expected.model, str(folder), str(tiny_model_dir))


def test_an_adapter_of_peft_goes_on_the_model_that_is_named(tiny_model_dir, adapter):
    folder = adapter(lora(), run=False)
    found = find(tiny_model_dir, folder)
    assert (found.model, found.tokenizer, found.adapter) == (str(tiny_model_dir), str(tiny_model_dir), str(folder))
    with pytest.raises(UserError, match="its base model is unknown; name it with --model"):
        find(adapter=folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lora(use_dora=True), "has use_dora True"),
        (lora(modules_to_save=["lm_head"]), "has modules_to_save"),
        (lora(bias="lora_only"), "has bias 'lora_only'"),
        (lora(init_lora_weights="olora"), "has init_lora_weights 'olora'"),
        (lora(rank_pattern={"q_proj": 4}), "has rank_pattern"),
        (lora(r=513), "has rank 513"),
        (IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]), "is a IA3 adapter"),
    ],
)
def test_an_adapter_that_vllm_would_load_wrongly_is_refused(adapter, config, said):
    folder = adapter(config)
    with pytest.raises(UserError) as raised:
        find(folder)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_two_adapters_are_refused(adapter):
    first = adapter(lora(), "first")
    second = adapter(lora(), "second", base=first)
    with pytest.raises(UserError, match="is the adapter"):
        find(second)
    with pytest.raises(UserError, match="is an adapter too"):
        find(first, second)


def test_a_run_of_a_tuner_of_ones_own_is_refused(tiny_model_dir, tmp_path):
    write_marker(tmp_path, Marker({"name": str(tiny_model_dir)}, {}, 42, {"name": "acme:own"}))
    with pytest.raises(UserError, match=r"is no LoRA adapter of PEFT .* --engine transformers"):
        find(tmp_path)


@pytest.mark.parametrize("options", [{"quantization": "8bit"}, {"attn_implementation": "sdpa"}])
def test_options_that_vllm_does_not_know_are_refused(tiny_model_dir, options):
    with pytest.raises(UserError, match=f"model_options.{next(iter(options))}: engine 'vllm'"):
        find(tiny_model_dir, model_options=options)


def test_a_model_that_a_plugin_builds_is_refused(tmp_path, adapter):
    with pytest.raises(UserError, match=r"model 'tiny' .*builds its model itself.*--engine transformers"):
        find("tiny")
    folder = adapter(lora(), base="tiny")
    assert json.loads((folder / "swiftplug.json").read_text())["base_model"] == {"name": "tiny"}
    with pytest.raises(UserError, match="builds its model itself"):
        find(folder)

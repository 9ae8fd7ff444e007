"""The built-in tuners: what trains, what is saved, and that both come back exactly."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from swiftplug.builtin.tuners.lora_layer import joined, round_once
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.folder import Marker
from swiftplug.runs.model import load_adapter

REGISTRY = Registry.discover()
IDS = torch.arange(3, 40)[None]


def tuner(name: str, **options: Any) -> Any:
    return REGISTRY.resolve("tuner", PluginChoice(name=name, options=options), "--tuner").bound


@pytest.fixture
def base(tiny_model_dir: Path) -> Callable[[], Any]:
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def learn(model: torch.nn.Module) -> None:
    """Change all trained parameters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.05


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


ALL = [
    ("full", {}),
    ("freeze", {"train": [r"layers\.1\."]}),
    ("freeze", {"train": ["lm_head", "norm"], "freeze": [r"layers\.0"]}),
    ("lora", {}),
    ("lora", {"r": 2, "target_modules": ["q_proj", "mlp.up_proj"], "modules_to_save": ["norm"], "use_rslora": True}),
    ("lora", {"use_dora": True, "init_lora_weights": "gaussian"}),
    ("lora", {"init_lora_weights": "pissa"}),
    ("lora", {"init_lora_weights": "olora", "target_modules": r".*\.1\.self_attn\.[qv]_proj"}),
    ("ia3", {}),
    ("peft", {"type": "vera", "r": 4, "target_modules": ["q_proj"]}),
    ("peft", {"type": "LOHA", "r": 2, "target_modules": "all-linear"}),
]
PROMPT = ("peft", {"type": "prompt_tuning", "num_virtual_tokens": 3})


@pytest.mark.parametrize(("name", "options"), ALL)
def test_round_trip_is_exact(base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Weights, what trains, and the order of parameters, which optimizers go by."""
    plugin = tuner(name, **options)
    torch.manual_seed(1)
    model = plugin.prepare_model(None, base())
    learn(model)
    plugin.save_pretrained(model, str(tmp_path))
    torch.manual_seed(2)
    again = plugin.from_pretrained(base(), str(tmp_path), is_trainable=True)
    before, after = list(model.named_parameters()), list(again.named_parameters())
    assert [key for key, _ in before] == [key for key, _ in after]
    for (key, saved), (_, loaded) in zip(before, after, strict=True):
        assert torch.equal(saved, loaded), key
        assert saved.requires_grad == loaded.requires_grad, key
        assert saved.dtype == loaded.dtype, key
    assert torch.equal(logits(model), logits(again))
    for_sampling = plugin.from_pretrained(base(), str(tmp_path))
    assert not any(parameter.requires_grad for parameter in for_sampling.parameters())
    assert torch.equal(logits(model), logits(for_sampling))


@pytest.mark.parametrize(("name", "options"), [*ALL, PROMPT])
def test_saved_folder_loads_without_us(
    base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    plugin = tuner(name, **options)
    model = plugin.prepare_model(None, base())
    learn(model)
    plugin.save_pretrained(model, str(tmp_path))
    loader = AutoModelForCausalLM if name in ("full", "freeze") else AutoPeftModelForCausalLM
    plain = loader.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(model), logits(plain))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_learned_prompt_loads_to_answer_but_not_to_train(base: Callable[[], Any], tmp_path: Path) -> None:
    plugin = tuner(PROMPT[0], **PROMPT[1])
    model = plugin.prepare_model(None, base())
    learn(model)
    plugin.save_pretrained(model, str(tmp_path))
    assert torch.equal(logits(model), logits(plugin.from_pretrained(base(), str(tmp_path))))
    with pytest.raises(UserError, match="PEFT cannot continue training an adapter of type PROMPT_TUNING"):
        plugin.from_pretrained(base(), str(tmp_path), is_trainable=True)


OF_TIED = [
    ("lora", {"target_modules": ["embed_tokens"]}),
    ("lora", {"target_modules": ["lm_head", "q_proj"], "use_dora": True}),
    ("lora", {"target_modules": r".*(embed_tokens|lm_head)", "init_lora_weights": "pissa"}),
    ("lora", {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    ("lora", {"modules_to_save": ["embed_tokens"]}),
    ("peft", {"type": "vera", "r": 4, "target_modules": ["lm_head"]}),
    ("peft", {"type": "lora", "target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    ("peft", {"type": "lora", "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5]}}),
    ("peft", {"type": "trainable_tokens", "token_indices": [5, 6]}),
]
NOT_MERGEABLE = [
    ("peft", {"type": "adaption_prompt", "adapter_len": 4, "adapter_layers": 2}),
    ("peft", {"type": "beft", "target_modules": ["v_proj"]}),  # it trains biases, which this model lacks
    ("peft", {"type": "lora", "target_modules": ["lm_head"], "trainable_token_indices": {"embed_tokens": [5]}}),
    PROMPT,
]


@pytest.mark.parametrize(("name", "options"), [*ALL[3:], *OF_TIED, *NOT_MERGEABLE])
def test_an_opened_run_computes_what_was_trained(
    base: Callable[[], Any], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    """Merged or not, and saved as a whole model, also where the adapter is on one of two tied layers."""
    if options.get("type") == "beft":
        pytest.importorskip("peft", minversion="0.20", reason="PEFT has BEFT since 0.20")
    chosen = REGISTRY.resolve("tuner", PluginChoice(name=name, options=copy.deepcopy(options)), "--tuner")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie_word_embeddings")
        model = chosen.bound.prepare_model(None, base())
    learn(model)
    expected = logits(model)
    assert (expected[:, -IDS.shape[1] :] - logits(base())).abs().max() > 1e-5
    run = tmp_path / "run"
    chosen.bound.save_pretrained(model, str(run))
    assert chosen.options == REGISTRY.resolve("tuner", PluginChoice(name=name, options=options), "--tuner").options
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base(), run)), expected)  # PEFT's own word
    Marker({}, {}, 0, {"name": chosen.found.qualified_name, "options": options}).write(run)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie_word_embeddings")
        opened = load_adapter(base(), str(run), REGISTRY, None)
    torch.testing.assert_close(logits(opened), expected)
    assert isinstance(opened, PeftModel) == ((name, options) in NOT_MERGEABLE)
    if not isinstance(opened, PeftModel):
        opened.save_pretrained(tmp_path / "whole")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
        torch.testing.assert_close(logits(whole), expected)


WITHOUT_BASE = [
    ("lora", {"bias": "all"}),
    ("lora", {"bias": "lora_only"}),
    ("lora", {"init_lora_weights": "olora"}),
    ("lora", {"init_lora_weights": "pissa"}),
    ("peft", {"type": "lora", "target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}),
    ("peft", {"type": "hra", "target_modules": ["q_proj"], "bias": "all"}),
]


@pytest.mark.parametrize(("name", "options"), [*ALL, *OF_TIED, *NOT_MERGEABLE, *WITHOUT_BASE])
def test_disabled_it_is_the_base_model_or_says_that_it_cannot_be(
    tiny_model_dir: Path, name: str, options: dict[str, Any]
) -> None:
    if options.get("type") == "beft":
        pytest.importorskip("peft", minversion="0.20", reason="PEFT has BEFT since 0.20")

    def base() -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir, dtype=torch.float32, attention_bias=True, mlp_bias=True
        )
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                torch.nn.init.constant_(parameter, 0.1)
        return model

    plugin = tuner(name, **copy.deepcopy(options))
    model = plugin.prepare_model(None, base())
    learn(model)
    trained, wanted = logits(model), {key: p.requires_grad for key, p in model.named_parameters()}
    disabled = plugin.disabled(model)
    can_be_none = name in ("full", "freeze") or (name, options) in WITHOUT_BASE or "init_lora_weights" in options
    assert disabled is not None or can_be_none
    if disabled is None:
        return
    with disabled:
        assert torch.equal(logits(model), logits(base()))
    assert torch.equal(logits(model), trained)
    assert {key: p.requires_grad for key, p in model.named_parameters()} == wanted


def test_lora_is_that_of_peft(base: Callable[[], Any]) -> None:
    """The same adapter as PEFT's own call gives, on every linear layer but the head, and no more."""
    torch.manual_seed(0)
    ours = tuner("lora", r=4, lora_alpha=8).prepare_model(None, base())
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    theirs = get_peft_model(base(), config)
    learn(ours)
    learn(theirs)
    assert torch.equal(logits(ours), logits(theirs))
    trained = {key for key, parameter in ours.named_parameters() if parameter.requires_grad}
    linears = {key for key, module in base().named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    assert trained == {f"base_model.model.{key}.lora_{ab}.default.weight" for key in linears for ab in "AB"}


def lora_layer(bias: Literal["none", "all"] = "none") -> Any:
    """A layer with a LoRA that adds a four-thousandth of its output, which has a bias."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["0"], bias=bias)
        layer = round_once(get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 48)), config))
        torch.nn.init.normal_(layer.base_model.model[0].lora_B["default"].weight, std=1e-4)
    return layer


def test_in_bf16_a_small_adapter_is_not_rounded_away() -> None:
    layer = lora_layer()
    x = torch.randn(600, 64, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    exact = layer(x)
    with layer.disable_adapter():
        change = exact - layer(x)
    assert (change.std() / exact.std()).item() == pytest.approx(2.5e-4, rel=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        own = peft.tuners.lora.Linear.forward(layer.base_model.model[0], x)  # for comparison: why it is not used
    assert rounded.dtype == torch.bfloat16
    # How much of what the adapter adds arrives, on average.
    without = exact - change
    shares = [((output - without) * change).sum() / change.square().sum() for output in (rounded, own)]
    assert shares[0].item() == pytest.approx(1, abs=0.2)
    assert shares[1].item() < 0.3


@torch.no_grad()
def test_in_bf16_decoding_takes_one_matrix_and_gives_the_same() -> None:
    layer = lora_layer()
    x = torch.randn(5, 1, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with joined(layer, torch.bfloat16):
            matrix = layer.base_model.model[0]._joined
            assert matrix.shape == (48, 64 + 8)
            assert torch.equal(layer(x), expected)
            matrix *= 2  # it is what is used
            assert not torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)


def test_in_bf16_gradients_are_those_of_float32() -> None:
    layer = lora_layer()
    x = torch.randn(3, 200, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    exact = torch.autograd.grad(layer(x).square().sum(), [x, *weights])
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().sum()
    for found, expected in zip(torch.autograd.grad(loss, [x, *weights]), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_in_bf16_biases_train_too() -> None:
    layer = lora_layer(bias="all")
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert layer.base_model.model[0].base_layer.bias.grad.tolist() == pytest.approx([400] * 48, rel=0.01)


@pytest.mark.parametrize("text", ["q_proj", "q_proj, v_proj", "self_attn.q_proj"])
def test_names_given_as_text_are_a_list(base: Callable[[], Any], text: str) -> None:
    as_list = text.replace(" ", "").split(",")
    tuned = [tuner("lora", target_modules=given).prepare_model(None, base()) for given in (text, as_list)]
    assert tuned[0].targeted_module_names == tuned[1].targeted_module_names != []
    assert tuner("lora", modules_to_save="norm").options == {"modules_to_save": ["norm"]}


def test_adapter_folder_holds_the_adapter_alone(base: Callable[[], Any], tmp_path: Path) -> None:
    model = tuner("lora").prepare_model(None, base())
    tuner("lora").save_pretrained(model, str(tmp_path))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in key for key in weights)


def test_loading_keeps_objects_and_ties(base: Callable[[], Any], tmp_path: Path) -> None:
    """Whoever holds a parameter of the base model, an optimizer above all, holds that of the loaded one."""
    plugin = tuner("full")
    model = plugin.prepare_model(None, base())
    learn(model)
    plugin.save_pretrained(model, str(tmp_path))
    target = base()
    held = dict(target.named_parameters())
    loaded = plugin.from_pretrained(target, str(tmp_path), is_trainable=True)
    assert loaded is target
    assert all(parameter is held[key] for key, parameter in loaded.named_parameters())
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_trained_weights_are_not_rounded_by_a_base_of_lower_precision(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A resume may load the base model in bfloat16; weights trained in float32 must come back in float32."""
    plugin = tuner("freeze", train=["mlp"])
    model = plugin.prepare_model(None, AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    learn(model)
    plugin.save_pretrained(model, str(tmp_path))
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    again = plugin.from_pretrained(fresh, str(tmp_path), is_trainable=True)
    for (key, saved), (_, loaded) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert saved.dtype == loaded.dtype, key
        assert torch.equal(saved, loaded), key


def test_freeze_trains_what_matches(base: Callable[[], Any]) -> None:
    model = tuner("freeze", train=[r"layers\.1\.", "embed"], freeze=["q_proj"]).prepare_model(None, base())
    for key, parameter in model.named_parameters():
        wanted = ("layers.1." in key or "embed" in key) and "q_proj" not in key
        assert parameter.requires_grad == wanted, key
    model = tuner("freeze", freeze=["lm_head"]).prepare_model(None, base())  # tied, so the embeddings by another name
    assert [key for key, parameter in model.named_parameters() if not parameter.requires_grad] == [
        "model.embed_tokens.weight"
    ]


def test_freeze_keeps_its_rules_when_something_else_froze_more(base: Callable[[], Any], tmp_path: Path) -> None:
    """A callback may rest layers for a while; a checkpoint of that moment must not make it last."""
    plugin = tuner("freeze", train=["mlp"])
    model = plugin.prepare_model(None, base())
    model.model.layers[0].requires_grad_(False)
    plugin.save_pretrained(model, str(tmp_path))
    again = plugin.from_pretrained(base(), str(tmp_path), is_trainable=True)
    assert {key for key, parameter in again.named_parameters() if parameter.requires_grad} == {
        key for key, _ in again.named_parameters() if "mlp" in key
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("freeze", {}, "give `train` or `freeze`"),
        ("freeze", {"train": ["("]}, "'(' is not a regular expression"),
        ("peft", {"type": "verra"}, "PEFT has no type 'verra'; did you mean 'VERA'?"),
        ("peft", {"type": "vera", "rank": 3}, "VeraConfig has no field 'rank'"),
        ("peft", {"type": "vera", "target_module": "x"}, "no field 'target_module'; did you mean 'target_modules'?"),
        ("peft", {}, "needs the option 'type'"),
        ("lora", {"rank": 8}, "takes no option 'rank'"),
        ("lora", {"r": "eight"}, "option 'r'"),
    ],
)
def test_options_are_refused_before_a_model_is_there(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        tuner(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"target_modules": ["q_proj", "up_prj"]}, "target_modules: the model has no module 'up_prj'"),
        ("lora", {"target_modules": ["q_prj"]}, "did you mean 'q_proj'?"),
        ("lora", {"target_modules": r".*\.q_prj"}, r"no module matches '.*\\.q_prj'"),
        ("lora", {"modules_to_save": ["lm_haed"]}, "modules_to_save: the model has no module 'lm_haed'; did you mean"),
        ("ia3", {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]}, "tuner ia3: "),
        ("peft", {"type": "lora", "target_modules": ["k_prj"]}, "tuner peft: target_modules: the model has no module"),
        ("peft", {"type": "lora", "init_lora_weights": "pissa_niter_4"}, "cannot be loaded again exactly"),
        ("freeze", {"train": ["mpl"]}, "no parameter matches 'mpl'; did you mean 'mlp'?"),
        ("freeze", {"train": ["mlp"], "freeze": ["layers"]}, "nothing would be trained"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    base: Callable[[], Any], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        tuner(name, **options).prepare_model(None, base())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_full_and_freeze_refuse_quantized_weights(base: Callable[[], Any]) -> None:
    for plugin in (tuner("full"), tuner("freeze", train=["mlp"])):
        model = base()
        model.quantization_method = "bitsandbytes"  # as Transformers sets it
        with pytest.raises(UserError, match="quantized weights cannot be trained; use an adapter, such as lora"):
            plugin.prepare_model(None, model)


def test_lora_on_a_quantized_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    """QLoRA: 4-bit weights below, the adapter above, and the same again from the saved folder."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoConfig, BitsAndBytesConfig

    # On some CPUs bitsandbytes packs its weights, for which a layer must be as wide as a block of 64.
    config = AutoConfig.from_pretrained(tiny_model_dir, hidden_size=64, intermediate_size=128, head_dim=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")

    def load() -> Any:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)

    plugin = tuner("lora", r=4)
    model = plugin.prepare_model(None, load())
    assert isinstance(model, PeftModel)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in key for key in trained)
    learn(model)
    adapter = str(tmp_path / "adapter")
    plugin.save_pretrained(model, adapter)
    again = plugin.from_pretrained(load(), adapter, is_trainable=True)
    assert torch.equal(logits(model), logits(again))
    assert {key for key, parameter in again.named_parameters() if parameter.requires_grad} == trained

"""The engine `transformers`: against `generate`, and against drawing token by token without cache, batch or padding."""

from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    Qwen2Config,
    TrainingArguments,
)

from swiftplug.builtin.engines.decoding import Decoder, GenerationRequest
from swiftplug.builtin.engines.fast_parts import PackedLinear
from swiftplug.builtin.hardware import pick_dtype
from swiftplug.config.load import load_train_config
from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Answered, Prompt, Sampling
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.plugins import RunPlugins
from swiftplug.training.run import train

REGISTRY = Registry.discover()
END = 2  # of the tiny models
QUESTIONS = ["Hi", "What is 17 + 25?", "Tell me everything that you know of the sea and its tides.", "7 * 6?", "x"]
PROMPTS = [Prompt(f"row-{index}", [{"role": "user", "content": text}]) for index, text in enumerate(QUESTIONS)]
SMALL = {"vocab_size": 259, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "eos_token_id": END}
SMALL |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None}
SMALL |= {"pad_token_id": 0}


def sampling(**changes: Any) -> Sampling:
    defaults = {"num_return_sequences": 3, "max_new_tokens": 40, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return Sampling(**{**defaults, "seed": 42, **changes})


def answer(how: Sampling, prompts: list[Prompt], *, batch_size: int = 64, **config: Any) -> dict[str, Answered]:
    """What the engine, found by its name, makes of prompts handed to it as a run does."""
    choice = PluginChoice(name="transformers", options={"batch_size": batch_size})
    engine = REGISTRY.resolve("engine", choice, "--engine").bound
    arguments = Arguments(SampleConfig.model_validate({"dtype": "float32", **config}), RunPlugins(REGISTRY))
    engine.open(arguments, how)
    size = engine.prompts_at_once(how)
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    answers = {answered.id: answered for batch in batches for answered in engine.generate(batch)}
    engine.close()
    assert set(answers) == {prompt.id for prompt in prompts}
    return answers


def texts(answers: dict[str, Answered]) -> dict[str, list[str]]:
    return {key: [completion.text for completion in answered.completions] for key, answered in answers.items()}


@pytest.fixture
def lay(tmp_path: Path, tiny_model_dir: Path) -> Callable[[Any], Path]:
    """Save a model of random weights beside the tiny tokenizer."""

    def lay(config: Any) -> Path:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # likelier to be far from uniform, and so to tell mistakes
            parameter.data *= 3
        folder = tmp_path / config.model_type
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
        return folder

    return lay


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def greedy_reference(model: Any, tokenizer: Any, prompt: Prompt, count: int) -> str:
    """The text that `generate` gives for one prompt alone."""
    ids = tokenizer.apply_chat_template(
        prompt.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**ids, do_sample=False, max_new_tokens=count, eos_token_id=END, pad_token_id=0)
    return str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :])).removesuffix("<|im_end|>")


ARCHITECTURES = [
    Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=24, max_window_layers=1),
    Gemma2Config(**SMALL, head_dim=8, sliding_window=24, query_pre_attn_scalar=8),
    GPT2Config(vocab_size=259, n_embd=32, n_head=4, n_layer=2, n_positions=512, eos_token_id=END, bos_token_id=None),
    Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: config.model_type)
def test_greedy_decoding_equals_generate(lay: Callable[[Any], Path], config: Any) -> None:
    """Windows and states slide past their length, and prompts of several lengths share the batch."""
    folder = lay(config)
    model, tokenizer = load(folder)
    answers = answer(sampling(temperature=0.0, num_return_sequences=2), PROMPTS, model=str(folder))
    for prompt in PROMPTS:
        expected = greedy_reference(model, tokenizer, prompt, 40)
        assert texts(answers)[prompt.id] == [expected, expected]
    assert len({text for candidates in texts(answers).values() for text in candidates}) == len(PROMPTS)


def test_answers_that_outgrow_the_first_room_of_the_cache_equal_generate(lay: Callable[[Any], Path]) -> None:
    folder = lay(LlamaConfig(**SMALL))
    model, tokenizer = load(folder)
    answers = texts(answer(sampling(temperature=0.0, max_new_tokens=300), PROMPTS, model=str(folder)))
    expected = {prompt.id: greedy_reference(model, tokenizer, prompt, 300) for prompt in PROMPTS}
    assert {key: candidates[0] for key, candidates in answers.items()} == expected
    assert max(map(len, expected.values())) > 250


def by_hand(model: Any, tokenizer: Any, prompt: Prompt, index: int, how: Sampling) -> tuple[str, str]:
    """Draw one candidate without cache, batch, padding or torch's random state."""
    generator = torch.Generator().manual_seed(how.seed_of(prompt.id, index))
    numbers = torch.rand(how.max_new_tokens, dtype=torch.float64, generator=generator).numpy()
    ids = list(tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True)["input_ids"])
    start = len(ids)
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double().numpy() / how.temperature
        cumulative = np.exp(logits - logits.max()).cumsum()
        drawn = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
        if drawn == END:
            return tokenizer.decode(ids[start:]), "stop"
        ids.append(drawn)
    return tokenizer.decode(ids[start:]), "length"


def test_candidates_are_those_drawn_one_by_one(tiny_model_dir: Path) -> None:
    """Some candidates end early and make way for others; a batch of 4 has parts of one prompt's 6 candidates."""
    model, tokenizer = load(tiny_model_dir)
    how = sampling(num_return_sequences=6, temperature=0.9)
    expected = {it.id: [by_hand(model, tokenizer, it, index, how) for index in range(6)] for it in PROMPTS}
    for batch_size in (64, 13, 4):
        answers = answer(how, PROMPTS, batch_size=batch_size, model=str(tiny_model_dir))
        found = {key: [(text, reason) for text, reason, *_ in it.completions] for key, it in answers.items()}
        assert found == expected
    reasons = [reason for candidates in expected.values() for _, reason in candidates]
    assert reasons.count("stop") >= 3 and reasons.count("length") >= 3


def test_a_prompt_gets_the_same_alone_and_again_and_with_another_seed_another(tiny_model_dir: Path) -> None:
    model = str(tiny_model_dir)
    all_at_once = answer(sampling(top_k=40, top_p=0.95), PROMPTS, model=model)
    assert answer(sampling(top_k=40, top_p=0.95), PROMPTS, model=model) == all_at_once
    for prompt in PROMPTS:
        alone = answer(sampling(top_k=40, top_p=0.95), [prompt], model=model)
        assert alone[prompt.id] == all_at_once[prompt.id]
    found = texts(all_at_once)
    assert len({text for candidates in found.values() for text in candidates}) == 3 * len(PROMPTS)
    other = texts(answer(sampling(top_k=40, top_p=0.95, seed=43), PROMPTS, model=model))
    assert not any(set(other[key]) & set(found[key]) for key in found)


def test_the_global_random_state_neither_counts_nor_changes(tiny_model_dir: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answer(sampling(), PROMPTS[:2], model=str(tiny_model_dir))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert answer(sampling(), PROMPTS[:2], model=str(tiny_model_dir)) == first


def test_first_tokens_are_distributed_as_the_model_says(tiny_model_dir: Path) -> None:
    model, tokenizer = load(tiny_model_dir)
    draws = 4000
    found = answer(
        sampling(num_return_sequences=draws, max_new_tokens=1, top_k=5),
        PROMPTS[1:2],
        batch_size=1000,
        model=str(tiny_model_dir),
    )
    ids = tokenizer.apply_chat_template(PROMPTS[1].messages, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        likeliest = model(**ids).logits[0, -1].topk(5)
    probabilities = likeliest.values.softmax(dim=-1).numpy()
    expected: Counter[str] = Counter()  # several tokens may be one text: that of half a character
    for token, probability in zip(likeliest.indices.tolist(), probabilities, strict=True):
        expected[tokenizer.decode([token])] += draws * probability
    counts = Counter(texts(found)["row-1"])
    assert set(counts) == set(expected) and len(expected) >= 3
    chi_square = sum((counts[text] - mean) ** 2 / mean for text, mean in expected.items())
    assert chi_square < 4 + 5 * np.sqrt(8)


def test_a_prompt_longer_than_the_context_fails_alone(tiny_model_dir: Path) -> None:
    long = Prompt("long", [{"role": "user", "content": "a" * 600}])
    tight = Prompt("tight", [{"role": "user", "content": "a" * 470}])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    lengths = {
        it.id: len(tokenizer.apply_chat_template(it.messages, add_generation_prompt=True)["input_ids"])
        for it in (long, tight)
    }
    how = sampling(temperature=0.0, max_new_tokens=100)
    answers = answer(how, [PROMPTS[0], long, tight], model=str(tiny_model_dir))
    assert answers["long"].failure == f"the prompt has {lengths['long']} tokens, the model reads at most 512"
    assert not answers["long"].completions
    alone = answer(how, [PROMPTS[0]], model=str(tiny_model_dir))
    assert answers["row-0"] == alone["row-0"]
    # The last token is never read: 512 are, and one more is drawn.
    (completion, *_) = answers["tight"].completions
    assert completion.finish_reason == "length"
    assert completion.text == greedy_reference(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), tokenizer, tight, 512 - lengths["tight"] + 1
    )


def test_a_prompt_that_the_template_refuses_fails_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'sea' in m.content %}{{ raise_exception('no sea') }}{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    answers = answer(sampling(), PROMPTS, model=str(tiny_model_dir), data={"template": str(template)})
    assert answers["row-2"].failure == "the chat template refuses the prompt: no sea"
    assert [len(answered.completions) for answered in answers.values()].count(3) == 4


def test_a_model_whose_output_is_no_number_fails_its_prompts(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.model.norm.weight.data[:] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "nan")
    answers = answer(sampling(), PROMPTS, model=str(tmp_path / "nan"))
    assert {it.failure for it in answers.values()} == {"the model's output is not a number; try another dtype"}


def test_memory_that_does_not_suffice_is_reported_in_a_line(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(UserError, match=r"^engine\.batch_size: 64 candidates at once do not fit .*; lower it$"):
        answer(sampling(), PROMPTS, model=str(tiny_model_dir))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_an_adapter_answers_as_in_peft(lay: Callable[[Any], Path], tmp_path: Path, config: Any) -> None:
    folder, saved = lay(LlamaConfig(**SMALL)), str(tmp_path / "adapter")
    base, tokenizer = load(folder)
    model = get_peft_model(base, config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(saved)
    how = sampling(num_return_sequences=2, max_new_tokens=16)
    answers = texts(answer(how, PROMPTS, model=str(folder), adapter=saved))
    plain = texts(answer(how, PROMPTS, model=str(folder)))
    for prompt in PROMPTS:
        assert answers[prompt.id] == [by_hand(model, tokenizer, prompt, index, how)[0] for index in range(2)]
        assert answers[prompt.id] != plain[prompt.id]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_of_the_type_asked_for(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    seen = set()

    class Seen(Decoder):
        def __init__(self, model: Any, *how: Any) -> None:
            seen.update(parameter.dtype for parameter in model.parameters())
            super().__init__(model, *how)

    monkeypatch.setattr("swiftplug.builtin.engines.transformers.Decoder", Seen)
    how = sampling(temperature=0.0, max_new_tokens=5)
    answers = answer(how, PROMPTS, model=str(tiny_model_dir), dtype=dtype)
    assert seen == {getattr(torch, dtype)}
    assert all(len(answered.completions) == 3 for answered in answers.values())


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists what a processor can do")
def test_left_to_itself_it_takes_half_precision_only_where_the_processor_has_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = flags & {"avx512_bf16", "amx_bf16"}
    assert pick_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.real
def test_greedy_decoding_of_a_real_model_equals_generate(smollm2_dir: Path) -> None:
    model, tokenizer = load(smollm2_dir)
    answers = answer(sampling(temperature=0.0, max_new_tokens=48), PROMPTS, model=str(smollm2_dir))
    for prompt in PROMPTS:
        assert texts(answers)[prompt.id][0] == greedy_reference(model, tokenizer, prompt, 48)


def test_an_end_of_turn_other_than_the_end_token_ends_a_candidate(lay: Callable[[Any], Path], tmp_path: Path) -> None:
    """As it does where an adapter is trained: its folder names both tokens, for plain Transformers and PEFT too."""
    folder = lay(LlamaConfig(**{**SMALL, "eos_token_id": 0}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<pad>"
    tokenizer.save_pretrained(folder)
    how = sampling(temperature=0.7, max_new_tokens=150)
    drawn = answer(how, PROMPTS, model=str(folder))
    finished = [completion for answered in drawn.values() for completion in answered.completions]
    assert {"stop"} <= {completion.finish_reason for completion in finished}
    assert not any("<|im_end|>" in completion.text for completion in finished)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    given = {"model": str(folder), "dataset": [str(data)], "output_dir": str(tmp_path / "run"), "tuner": "lora"}
    train(load_train_config(None, given, ["training.max_steps=1"]).config)
    assert GenerationConfig.from_pretrained(tmp_path / "run").eos_token_id == [END, 0]
    arguments = Arguments(SampleConfig.model_validate({"model": str(tmp_path / "run")}), RunPlugins(REGISTRY))
    assert arguments.load_model().generation_config.eos_token_id == [END, 0]


def test_a_text_ends_a_candidate_as_a_token_does(tiny_model_dir: Path) -> None:
    model, tokenizer = load(tiny_model_dir)
    ends = list(range(40, 60))
    requests = [
        GenerationRequest(tokenizer(text)["input_ids"], [1, 2, 3], longest)
        for text, longest in (("Hi", 30), ("What is it?", 7))
    ]
    by_token = Decoder(model, ends).decode(requests, sampling())
    by_text = Decoder(model, [], lambda ids: ids[-1] in ends).decode(requests, sampling())
    reasons = {drawn.finish_reason for drawn in chain(*by_token)}
    assert reasons == {"stop", "length"}
    assert by_text == by_token


def following(model: Any, folder: Path, **training: Any) -> Any:
    """The engine, ready to draw from a model in training."""
    engine = REGISTRY.resolve("engine", PluginChoice(name="transformers"), "--engine").bound
    config = SampleConfig.model_validate({"model": str(folder)})
    arguments = TrainingArguments(str(folder / "out"), use_cpu=True, **training)
    engine.follow(Arguments(config, RunPlugins(REGISTRY), arguments), model)
    return engine


def drawn(engine: Any, prompts: list[Prompt], **changes: Any) -> dict[str, list[Any]]:
    how = {"temperature": 0.0, "num_return_sequences": 1, **changes}
    return {answered.id: list(answered.completions) for answered in engine.draw(prompts, sampling(**how))}


def greedy_ids(model: Any, tokenizer: Any, prompt: Prompt, count: int = 40) -> list[int]:
    """The likeliest tokens for one prompt alone, each from a pass over all that are before it.

    With a learned prompt, `generate` of PEFT 0.21.2 on Transformers 5.24 gives others.
    """
    ids = list(tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True)["input_ids"])
    drawn: list[int] = []
    model.eval()
    with torch.no_grad():
        while len(drawn) < count and END not in drawn:
            drawn.append(int(model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].argmax()))
    return drawn


def move(model: Any, seed: int, by: float = 0.3) -> None:
    """Change what trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * by


TRAINED = {
    "full": lambda base: base,
    "lora": lambda base: get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.5)
    ),
    "lora and head": lambda base: get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"])
    ),
    "dora": lambda base: get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", use_dora=True)),
    "prompt": lambda base: get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuner", TRAINED)
def test_it_draws_from_the_weights_as_they_are_now_and_leaves_the_model_as_it_was(
    lay: Callable[[Any], Path], tuner: str, checkpointing: bool
) -> None:
    folder = lay(LlamaConfig(**SMALL, attention_dropout=0.5))
    base, tokenizer = load(folder)
    model = TRAINED[tuner](base).train()
    model.get_submodule("model.layers.0.mlp" if tuner == "full" else "base_model").eval()
    if checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    engine = following(model, folder)
    row = tokenizer("What is 17 + 25?", return_tensors="pt")["input_ids"]

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        model(input_ids=row, labels=row).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]

    seen = []
    for seed in (1, 2):
        move(model, seed)
        modules = {name: (module, module.training) for name, module in model.named_modules()}
        bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        before = gradients()
        seen.append(drawn(engine, PROMPTS))
        assert {name: (module, module.training) for name, module in model.named_modules()} == modules
        assert all(torch.equal(bits[name], tensor) for name, tensor in model.state_dict().items())
        assert all(map(torch.equal, before, gradients()))
        for prompt in PROMPTS:
            [completion] = seen[-1][prompt.id]
            assert completion.ids == greedy_ids(model, tokenizer, prompt)
            assert tokenizer.decode(completion.ids).removesuffix("<|im_end|>") == completion.text
            assert not completion.logps
        for module, mode in modules.values():
            module.training = mode
    assert seen[0] != seen[1]


@pytest.mark.real
def test_it_draws_from_a_real_model_in_training(smollm2_dir: Path) -> None:
    base, tokenizer = load(smollm2_dir)
    model = TRAINED["lora"](base).train()
    move(model, 1, 0.02)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = drawn(following(model, smollm2_dir), PROMPTS[:3], max_new_tokens=24)
    assert model.training and all(torch.equal(bits[name], tensor) for name, tensor in model.state_dict().items())
    for prompt in PROMPTS[:3]:
        assert found[prompt.id][0].ids == greedy_ids(model, tokenizer, prompt, 24)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="only oneDNN has packed layers")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_linear_layers_are_packed_for_the_time_of_a_drawing(
    lay: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    folder = lay(LlamaConfig(**SMALL))
    model = TRAINED[tuner](load(folder)[0])
    inner = model if tuner == "full" else model.get_base_model()
    layers = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkvo"]
    seen: list[type] = []

    class Seen(Decoder):
        def decode(self, *given: Any) -> Any:
            seen.extend(type(inner.get_submodule(name)) for name in layers)
            return super().decode(*given)

    monkeypatch.setattr("swiftplug.builtin.engines.transformers.Decoder", Seen)
    drawn(following(model, folder), PROMPTS)
    assert set(seen) == {PackedLinear} and len(seen) == 8
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_what_is_drawn_ends_with_the_token_that_ended_it(tiny_model_dir: Path) -> None:
    model, _ = load(tiny_model_dir)
    how = {"temperature": 0.9, "num_return_sequences": 6}
    found = drawn(following(model, tiny_model_dir), PROMPTS, **how)
    sampled = answer(sampling(**how), PROMPTS, model=str(tiny_model_dir))
    reasons = set()
    for prompt in PROMPTS:
        assert [it[:2] for it in found[prompt.id]] == [it[:2] for it in sampled[prompt.id].completions]
        for completion in found[prompt.id]:
            assert (completion.ids[-1] == END) == (completion.finish_reason == "stop")
            assert END not in completion.ids[:-1]
            reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


def test_known_tokens_are_continued_as_they_are_each_to_its_own_limit(tiny_model_dir: Path) -> None:
    model, tokenizer = load(tiny_model_dir)
    engine = following(model, tiny_model_dir)
    [prompt] = PROMPTS[1:2]
    whole = drawn(engine, [prompt], temperature=0.7)[prompt.id][0].ids
    ids = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True)["input_ids"]
    longer = [prompt._replace(id=str(n), ids=[*ids, *greedy_ids(model, tokenizer, prompt, n)]) for n in (1, 5)]
    limits = [prompt._replace(id="3", max_new_tokens=3), prompt._replace(id="60", max_new_tokens=60)]
    found = {key: it[0].ids for key, it in drawn(engine, [*longer, *limits, PROMPTS[0]]).items()}
    greedy = greedy_ids(model, tokenizer, prompt, 60)
    assert found["1"] == greedy[1:41] and found["5"] == greedy[5:45] and found["3"] == greedy[:3]
    assert found["60"] == greedy and len(greedy) > 45
    assert found["row-0"] == greedy_ids(model, tokenizer, PROMPTS[0])
    assert whole == drawn(engine, [*limits, prompt], temperature=0.7)[prompt.id][0].ids


def test_a_prompt_that_is_too_long_to_be_drawn_for_fails_alone(tiny_model_dir: Path) -> None:
    model, _ = load(tiny_model_dir)
    long = PROMPTS[0]._replace(id="long", ids=[70] * 513)
    answers = {it.id: it for it in following(model, tiny_model_dir).draw([long, *PROMPTS], sampling())}
    assert answers["long"].failure == "the prompt has 513 tokens, the model reads at most 512"
    assert all(len(answers[prompt.id].completions) == 3 for prompt in PROMPTS)


def test_an_interrupted_drawing_leaves_the_model_as_it_was(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(tiny_model_dir)
    modules = dict(model.train().named_modules())
    engine = following(model, tiny_model_dir)

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoder, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(engine.draw(PROMPTS, sampling()))
    assert dict(model.named_modules()) == modules and all(module.training for module in modules.values())


def test_candidates_come_batch_by_batch_and_between_them_the_model_has_its_modes(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load(tiny_model_dir)
    modules = dict(model.train().named_modules())
    engine = following(model, tiny_model_dir, bf16=True)
    monkeypatch.setattr(engine, "batch_size", 2)
    batches, decode = [], Decoder.decode

    def counting(decoder: Decoder, requests: Any, how: Any) -> Any:
        assert not model.training
        batches.append(len(requests))
        return decode(decoder, requests, how)

    monkeypatch.setattr(Decoder, "decode", counting)
    answers = engine.draw(PROMPTS[:4], sampling(num_return_sequences=1))
    for count in (1, 1, 2, 2):
        assert next(answers).completions and len(batches) == count
        assert all(module.training for module in modules.values()) and not torch.is_autocast_enabled("cpu")
    answers.close()
    assert dict(model.named_modules()) == modules


def test_it_draws_in_the_precision_that_the_run_trains_in(lay: Callable[[Any], Path]) -> None:
    folder = lay(LlamaConfig(**SMALL))
    model, tokenizer = load(folder)
    found = {key: it[0].ids for key, it in drawn(following(model, folder, bf16=True), PROMPTS).items()}
    plain = {prompt.id: greedy_ids(model, tokenizer, prompt) for prompt in PROMPTS}
    with torch.autocast("cpu", torch.bfloat16):
        assert found == {prompt.id: greedy_ids(model, tokenizer, prompt) for prompt in PROMPTS}
    assert found != plain


def test_a_model_that_is_sharded_is_refused(tiny_model_dir: Path) -> None:
    engine = REGISTRY.resolve("engine", PluginChoice(name="transformers"), "--engine").bound
    arguments = Arguments(SampleConfig.model_validate({"model": str(tiny_model_dir)}), RunPlugins(REGISTRY))
    engine.check_run(arguments)
    arguments.training_args = TrainingArguments(str(tiny_model_dir / "out"), use_cpu=True)
    engine.check_run(arguments)
    arguments.training_args.fsdp = True
    with pytest.raises(UserError, match="cannot draw from a model that FSDP or DeepSpeed shards"):
        engine.check_run(arguments)

"""The engine `vllm` against a stand-in for vLLM, which needs a GPU: what it loads, asks for and refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from swiftplug.plugin import Prompt, Sampling, UserError
from swiftplug_vllm.engine import VLLMEngine

SETTINGS = {"revision": "v1", "quantization": None, "attn_implementation": None, "trust_remote_code": False}


class FakeChat:
    """A token is a character; a template that opens each answer with `<`, and ends it with `>` or the text `##`."""

    def __init__(self) -> None:
        self.end_ids = [ord(">")]
        self.stop_text = "##"

    def encode(self, prompt: Prompt) -> tuple[list[int], str]:
        text = f"{prompt.tools or ''}{prompt.messages[-1]['content']}<"
        if "?" not in text:
            raise UserError("the chat template refuses the prompt: not a question")
        return [ord(letter) for letter in text], "<"

    def answer(self, ids: Sequence[int], opened: str = "") -> str:
        return opened + "".join(map(chr, ids)).partition("##")[0]


class Arguments:
    """A run's arguments, with a model of the hub, or one that must be written out first."""

    def __init__(self, *, is_checkpoint: bool = True, **options: Any) -> None:
        self.model_options = SimpleNamespace(**{**SETTINGS, **options})
        self.dtype, self.seed = "bfloat16", 42
        self.is_checkpoint = is_checkpoint
        self.training_args: Any = None
        self.model = "org/name"

    def load_chat(self, model: Any = None) -> Any:
        return FakeChat()

    def export_model(self, folder: str | Path) -> str:
        if self.is_checkpoint:
            return "org/name"
        (Path(folder) / "config.json").write_text("{}")
        return str(folder)


class FakeLLM:
    """Answers with the seed and the prompt; keeps what it was given."""

    loaded: ClassVar[list["FakeLLM"]] = []

    def __init__(self, **settings: Any) -> None:
        if settings["model"] != "org/name":
            assert Path(settings["model"], "config.json").is_file()
        if settings.get("max_model_len") == 1:
            raise ValueError("max_model_len\nis too small")
        self.settings = settings
        model_config = SimpleNamespace(max_model_len=settings["max_model_len"] or 30)
        self.llm_engine = SimpleNamespace(model_config=model_config)
        self.loaded.append(self)

    def generate(self, prompts: list[Any], sampling_params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.prompts, self.params = prompts, sampling_params
        assert all(len(prompt["prompt_token_ids"]) < self.llm_engine.model_config.max_model_len for prompt in prompts)
        assert {(tuple(params.stop_token_ids), tuple(params.stop)) for params in sampling_params} == {((62,), ("##",))}
        ends = [(">", ord(">")), ("\0", None), ("##", "##")]  # the end token, one that vLLM adds, a text
        drawn = []
        for index, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            end, reason = ends[index % 3]
            ids = [*prompt["prompt_token_ids"], *map(ord, f"{params.seed}{end}")]
            drawn.append(SimpleNamespace(token_ids=ids, finish_reason="stop", stop_reason=reason, text="no specials"))
        return [SimpleNamespace(outputs=[output]) for output in drawn]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLLM.loaded.clear()
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace))


def sampling(n: int = 3, temperature: float = 0.7) -> Sampling:
    return Sampling(n, 16, temperature, 0.9, 20, 42)


def asked(text: str, tools: Any = None) -> Prompt:
    return Prompt(f"id of {text}", [{"role": "user", "content": text}], tools)


def test_each_candidate_is_drawn_with_its_own_seed() -> None:
    engine, how = VLLMEngine(), sampling()
    engine.open(Arguments(), how)
    prompts = [asked("1 + 1?"), asked("2 + 2?", ["add"])]
    answered = list(engine.generate(prompts))
    assert [it.id for it in answered] == [prompt.id for prompt in prompts]
    for prompt, shown, it in zip(prompts, ["<1 + 1?<", "<['add']2 + 2?<"], answered, strict=True):
        seeds = [how.seed_of(prompt.id, index) for index in range(3)]
        assert [completion.text for completion in it.completions] == [f"{shown}{seed}" for seed in seeds]
        assert {completion.finish_reason for completion in it.completions} == {"stop"}
    (llm,) = FakeLLM.loaded
    fields = {"max_tokens": 16, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    stops = {"stop_token_ids": [ord(">")], "stop": ["##"]}
    assert all(vars(params) == {**fields, **stops, "seed": params.seed} for params in llm.params)


def test_greedy_candidates_are_drawn_once() -> None:
    engine = VLLMEngine()
    engine.open(Arguments(), sampling(temperature=0.0))
    (answered,) = engine.generate([asked("1 + 1?")])
    assert len(answered.completions) == 3 and len(set(answered.completions)) == 1
    assert len(FakeLLM.loaded[0].params) == 1


def test_a_prompt_that_cannot_be_answered_fails_alone() -> None:
    engine = VLLMEngine()
    engine.open(Arguments(), sampling())
    prompts = [asked("no question"), asked("1 + 1?"), asked("?" * 40)]
    answered = {it.id: it for it in engine.generate(prompts)}
    assert answered["id of no question"].failure == "the chat template refuses the prompt: not a question"
    assert answered[prompts[2].id].failure == "the prompt has 41 tokens, too many for max_model_len 30"
    assert len(answered["id of 1 + 1?"].completions) == 3
    assert [it.failure for it in engine.generate(prompts[:1])]  # vLLM is not asked for nothing


def test_a_checkpoint_is_loaded_by_its_name_and_options() -> None:
    engine = VLLMEngine(tensor_parallel_size=2, engine_args={"enforce_eager": True, "seed": 7})
    engine.open(Arguments(quantization="4bit", trust_remote_code=True), sampling())
    assert FakeLLM.loaded[0].settings == {
        "model": "org/name",
        "revision": "v1",
        "dtype": "bfloat16",
        "seed": 7,
        "trust_remote_code": True,
        "quantization": "bitsandbytes",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.9,
        "max_model_len": None,
        "enforce_eager": True,
    }


def test_another_model_is_written_to_a_folder_that_lives_as_long_as_the_engine() -> None:
    engine = VLLMEngine()
    engine.open(Arguments(is_checkpoint=False), sampling())
    settings = FakeLLM.loaded[0].settings
    assert settings["revision"] is None
    assert list(engine.generate([asked("1 + 1?")]))
    assert Path(settings["model"], "config.json").is_file()
    engine.close()
    assert not Path(settings["model"]).exists()


@pytest.mark.parametrize("options", [{"quantization": "8bit"}, {"attn_implementation": "sdpa"}])
def test_options_that_vllm_does_not_know_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"model_options.{next(iter(options))}: engine 'vllm'"):
        VLLMEngine().open(Arguments(**options), sampling())


def test_what_vllm_cannot_load_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^engine 'vllm': cannot load 'org/name': max_model_len is too small$"):
        VLLMEngine(max_model_len=1).open(Arguments(), sampling())
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^engine 'vllm': cannot load 'org/name': .*vllm"):
        VLLMEngine().open(Arguments(), sampling())


def test_a_batch_keeps_vllm_busy() -> None:
    assert VLLMEngine().prompts_at_once(sampling(n=1)) == 4096
    assert VLLMEngine().prompts_at_once(sampling(n=4096)) == 256


FAKE_VLLM = """
from types import SimpleNamespace as SamplingParams

from transformers import AutoModelForCausalLM, AutoTokenizer


class LLM:
    def __init__(self, model, **settings):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.num_weights = AutoModelForCausalLM.from_pretrained(model).num_parameters()
        self.llm_engine = SamplingParams(model_config=SamplingParams(max_model_len=512))

    def generate(self, prompts, params, use_tqdm):
        outputs = []
        for prompt in prompts:
            question = self.tokenizer.decode(prompt["prompt_token_ids"], skip_special_tokens=True)
            ids = self.tokenizer.encode(f"{self.num_weights} weights read: {question}<|end|>")
            output = SamplingParams(token_ids=ids, finish_reason="stop", stop_reason=None)
            outputs.append(SamplingParams(outputs=[output]))
        return outputs
"""


def test_a_run_finds_the_engine_by_its_name_and_gives_it_a_model_that_a_plugin_builds(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text(FAKE_VLLM)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How many apples?", "completion": "2"}\n')
    line = ["sample", "--engine", "vllm", "--model", "tiny", "--dataset", "rows.jsonl", "--output-dir", "run"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "swiftplug", *line, "--num-return-sequences", "2", "--orm", "math"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    candidates = [json.loads(line) for line in (tmp_path / "run" / "candidates.jsonl").read_text().splitlines()]
    assert len(candidates) == 2
    for candidate in candidates:
        answer = candidate["messages"][-1]["content"]
        assert int(answer.split()[0]) > 100_000 and "How many apples?" in answer


class Colocated(FakeLLM):
    """Draws, with the weights it was last given, the likeliest tokens one after the other; vLLM asleep cannot."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = LlamaForCausalLM(SMALL)
        self.awake = {"weights", "kv_cache"}
        self.calls: list[str] = []

    def sleep(self, level: int) -> None:
        assert level == 2 and self.awake == {"weights", "kv_cache"}
        self.awake.clear()
        for parameter in self.model.parameters():
            parameter.data.fill_(torch.nan)

    def wake_up(self, tags: list[str]) -> None:
        assert not self.awake & set(tags)
        self.awake |= set(tags)

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def load_weights(self, weights: Any) -> set[str]:
        known = dict(self.model.named_parameters())
        return {known[name].data.copy_(value) is not None and name for name, value in weights}

    def apply_model(self, function: Any) -> list[Any]:
        assert "weights" in self.awake
        self.calls.append("load")
        loaded = function(self)
        assert loaded == dict(self.model.named_parameters()).keys()
        return [loaded]

    def generate(self, prompts: list[Any], sampling_params: list[Any], *, use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        self.calls.append("draw")
        self.params = sampling_params
        drawn = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            ids, logprobs = list(prompt["prompt_token_ids"]), []
            for _ in range(params.max_tokens):
                with torch.no_grad():
                    scores = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
                ids.append(int(scores.argmax()))
                logprobs.append({ids[-1]: SimpleNamespace(logprob=float(scores.max()))})
            asked = getattr(params, "logprobs", None) is not None
            output = {"finish_reason": "length", "stop_reason": None, "logprobs": logprobs if asked else None}
            token_ids = ids[len(prompt["prompt_token_ids"]) :]
            drawn.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=token_ids, **output)]))
        return drawn


SMALL = LlamaConfig(
    vocab_size=128,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
TRAINED: dict[str, Any] = {
    "full": lambda base: base,
    "lora": lambda base: get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")),
    "lora and norm": lambda base: get_peft_model(
        base, LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    ),
}


def in_training(**options: Any) -> Arguments:
    arguments = Arguments(**options)
    arguments.training_args = SimpleNamespace(bf16=False, fp16=False, fsdp=None, deepspeed=None)
    return arguments


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of a run that may be one of several, with a vLLM that takes weights."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # undone after the test
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Colocated, SamplingParams=SimpleNamespace))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("tuner", TRAINED)
def test_it_draws_from_a_model_in_training_and_sleeps_in_between(tuner: str) -> None:
    torch.manual_seed(1)
    model: Any = TRAINED[tuner](LlamaForCausalLM(SMALL)).train()
    engine, prompt = VLLMEngine(), asked("1 + 1?")
    engine.follow(in_training(), model)
    llm: Any = FakeLLM.loaded[0]
    assert os.environ["WORLD_SIZE"] == "1" and not llm.awake
    required = {"distributed_executor_backend": "external_launcher", "enable_sleep_mode": True}
    required |= {"logprobs_mode": "processed_logprobs", "gpu_memory_utilization": 0.3, "dtype": "float32"}
    assert required.items() <= llm.settings.items()
    seen = []
    for _ in range(2):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.5
        bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ids = torch.tensor([[*FakeChat().encode(prompt)[0]]])
        for _ in range(2):  # a second drawing before it rests
            [answered] = engine.draw([prompt], Sampling(2, 5, 0.7, 1.0, 0, 42))
        engine.rest()
        assert not llm.awake and [params.logprobs for params in llm.params] == [0, 0]
        assert all(torch.equal(bits[name], tensor) for name, tensor in model.state_dict().items())
        how = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
        expected = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
        assert [completion.ids for completion in answered.completions] == [expected[0, ids.shape[1] :].tolist()] * 2
        with torch.no_grad():
            logps = model(input_ids=expected).logits[0, ids.shape[1] - 1 : -1].log_softmax(dim=-1).amax(dim=-1)
        assert torch.tensor(answered.completions[0].logps).allclose(logps, atol=1e-4)
        seen.append(answered)
    assert seen[0] != seen[1]
    assert llm.calls == ["load", "reset", "draw"] * 4


@pytest.mark.usefixtures("launched")
def test_it_continues_known_tokens_and_gives_no_logps_that_top_p_changed() -> None:
    engine, prompt = VLLMEngine(), asked("1 + 1?")
    engine.follow(in_training(), LlamaForCausalLM(SMALL))
    [whole] = engine.draw([prompt], Sampling(1, 6, 0.7, 0.9, 0, 42))
    ids = [*FakeChat().encode(prompt)[0], *whole.completions[0].ids[:2]]
    [rest] = engine.draw([prompt._replace(ids=ids, max_new_tokens=3)], Sampling(1, 6, 0.0, 1.0, 0, 42))
    assert rest.completions[0].ids == whole.completions[0].ids[2:5]
    assert not whole.completions[0].logps and not rest.completions[0].logps


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (IA3Config(task_type="CAUSAL_LM"), "not those of this tuner"),
        (LoraConfig(task_type="CAUSAL_LM", use_dora=True), "not those of this tuner"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "not those of this tuner"),
        (LoraConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"]), "which the tuner trains apart"),
        (LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"]), "which the tuner trains apart"),
    ],
    ids=["ia3", "dora", "prompt", "head", "embedding"],
)
def test_a_model_whose_weights_it_could_not_take_is_refused(config: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"^engine 'vllm' .*{words}.*engine 'transformers'"):
        VLLMEngine().follow(in_training(), get_peft_model(LlamaForCausalLM(SMALL), config))
    assert not FakeLLM.loaded


def test_an_online_run_that_it_cannot_act_in_is_refused() -> None:
    VLLMEngine().check_run(in_training())
    VLLMEngine(tensor_parallel_size=2).check_run(Arguments(quantization="4bit"))
    with pytest.raises(UserError, match=r"^engine\.tensor_parallel_size: 1 in an online task"):
        VLLMEngine(tensor_parallel_size=2).check_run(in_training())
    with pytest.raises(UserError, match=r"^model_options\.quantization: engine 'vllm' cannot follow"):
        VLLMEngine().check_run(in_training(quantization="4bit"))
    sharded = in_training()
    sharded.training_args.fsdp = True
    with pytest.raises(UserError, match="FSDP or DeepSpeed shards; use DDP"):
        VLLMEngine().check_run(sharded)

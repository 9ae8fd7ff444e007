"""What many tests share: a random tiny chat model on disk, made once a session, plugins to install, a chat server."""

import gc
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from swiftplug.plugin.registry import summaries

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: Trainer calls it at every start, and scanning that takes 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep encoded datasets in the session's folder: none made by other code is met, and none is left behind."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SWIFTPLUG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level two-layer Llama with a ChatML tokenizer, seeded, saved as any checkpoint is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Any:
    """Write rows to a JSONL file of the test's folder and return its path."""

    def write(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """A real pretrained chat model of 135M parameters, for tests marked `real`; `smollm2.py` lays it out once."""
    script = Path(__file__).with_name("smollm2.py")
    laid = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True)
    return Path(laid.stdout.strip())


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lay a distribution of plugins on `sys.path`, as pip would, and return the folder it is in.

    `install("acme", {"losses": {"x": "acme:f"}}, {"acme.py": "def f(outputs, labels): ..."})`. What its modules leave
    in `sys.modules`, and where they were found, goes with the test.
    """
    before = set(sys.modules)

    def lay(
        name: str,
        groups: dict[str, dict[str, str]],
        modules: dict[str, str],
        *,
        version: str = "1.0",
        requires: Sequence[str] = (),
        folder: str | None = None,
    ) -> Path:
        site = tmp_path / (folder or f"site-{name}-{version}")
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        metadata += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        sections = [
            f"[swiftplug.{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(sections))
        for path, text in modules.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text)
        monkeypatch.syspath_prepend(str(site))
        return site

    yield lay
    for module in set(sys.modules) - before:
        file = getattr(sys.modules[module], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[module]
    summaries._find_spec.cache_clear()


@pytest.fixture
def openai_server() -> Iterator[Any]:
    """Start OpenAI-compatible servers on loopback: `openai_server(lambda request: "4").base_url`.

    See `openai_server.py` for what a request has, what may be answered and how a server can fail.
    """
    module = _load("openai_server")
    started: list[Any] = []

    def start(answer: Any) -> Any:
        started.append(module.OpenAIServer(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium, see `browser.py`; tests that need one are skipped where none is installed."""
    module = _load("browser")
    if module.CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    browser = module.Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def trl_oracle() -> Any:
    """What TRL does at the first step of a training, see `trl_oracle.py`."""
    return _load("trl_oracle")


def _load(name: str) -> Any:
    """A module that lies beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

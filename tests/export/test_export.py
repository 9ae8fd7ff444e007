"""`swiftplug export`: what plain Transformers and PEFT make of an exported folder is what the run's own files make."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from typer.testing import CliRunner

from swiftplug.cli.main import app
from swiftplug.errors import UserError
from swiftplug.export.proof import outputs_of
from swiftplug.plugin import Labels
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.folder import Head, Marker
from swiftplug.runs.model import with_head

REGISTRY = Registry.discover()
IDS = torch.tensor([[1, *range(30, 90), 2]])
SCORE = Head("sequence", Labels(("reward",), "regression"))
NORMS = Path(__file__).parents[1] / "norms.py"


def export(*arguments: object) -> str:
    """What the command prints; a UserError goes through."""
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def plain(folder: Path, auto: Any = AutoModelForCausalLM) -> torch.Tensor:
    return logits(auto.from_pretrained(folder, dtype=torch.float32))


@pytest.fixture
def make_run(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., tuple[Path, torch.Tensor]]:
    """The folder of a run that a tuner left, with random numbers for what it learned; and the logits of its model."""

    def make(
        tuner: str,
        *,
        name: str = "run",
        base: Path = tiny_model_dir,
        head: Head | None = None,
        files: Any = (),
        **options: Any,
    ) -> tuple[Path, torch.Tensor]:
        registry = Registry.discover(files=[*files]) if files else REGISTRY
        bound = registry.resolve("tuner", PluginChoice(name=tuner, options=options), "tuner").bound
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(1)
        if head is not None:
            model = with_head(model, head, 0, trust_remote_code=False)
        model = bound.prepare_model(None, model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape) * 0.05
        folder = tmp_path / name
        folder.mkdir()
        bound.save_pretrained(model, str(folder))
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        named = {"name": tuner, "options": options}
        task = {"name": "swiftplug:sft", "head": "language"}
        if head is not None:
            task = {
                "name": "swiftplug:rm",
                "head": head.kind,
                "labels": [*head.labels.names],
                "problem_type": head.labels.problem_type,
            }
        settings = {"revision": None, "attn_implementation": None, "quantization": None, "trust_remote_code": False}
        Marker({"name": str(base), "options": {}}, settings, 42, named, task).write(folder)
        return folder, logits(model)

    return make


@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        ("full", {}),
        ("freeze", {"train": [r"layers\.1\."]}),
        ("lora", {}),
        ("lora", {"use_dora": True, "modules_to_save": ["norm"]}),
        ("lora", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("lora", {"init_lora_weights": "pissa"}),
        ("ia3", {}),
        ("peft", {"type": "LOHA", "r": 2, "target_modules": "all-linear"}),
    ],
)
def test_plain_transformers_gives_the_logits_of_the_run(
    make_run: Any, tmp_path: Path, tuner: str, options: dict[str, Any]
) -> None:
    run, expected = make_run(tuner, **options)
    said = export(run, "--to", tmp_path / "out")
    assert "logits: those of the run; largest difference" in said
    assert "the same greedy answer" in said
    assert "answers end at '<|im_end|>'" in said
    torch.testing.assert_close(plain(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run).chat_template
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_an_adapter_on_a_merged_adapter(make_run: Any, tmp_path: Path) -> None:
    """A third stage: its base is kept in the run, so it is kept in an unmerged export too."""
    first, _ = make_run("lora", name="first")
    export(first, "--to", tmp_path / "run2" / "base_model")
    second, expected = make_run("lora", name="second", base=tmp_path / "run2" / "base_model", r=2)
    export(second, "--to", tmp_path / "merged")
    torch.testing.assert_close(plain(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-5)
    export(second, "--to", tmp_path / "beside", "--no-merge")
    shutil.rmtree(tmp_path / "run2")
    moved = (tmp_path / "beside").rename(tmp_path / "moved")
    base = AutoModelForCausalLM.from_pretrained(moved / "base_model", dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, moved)), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_is_the_rounding_of_the_runs_weights_alone(make_run: Any, tmp_path: Path) -> None:
    run, expected = make_run("lora")
    said = export(run, "--to", tmp_path / "out", "--dtype", "bfloat16")
    assert "what rounding the run's weights to bfloat16 changes" in said
    exact = tmp_path / "exact"
    export(run, "--to", exact)
    half, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", exact))
    assert half.keys() == whole.keys()
    for name, weight in half.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, whole[name].to(torch.bfloat16)), name
    worst = float((plain(tmp_path / "out") - expected).abs().max() / expected.abs().max())
    assert 0 < worst < 0.05


def test_reward_models_and_a_tuner_of_a_file(make_run: Any, tmp_path: Path) -> None:
    run, expected = make_run("lora", head=SCORE)
    said = export(run, "--to", tmp_path / "reward")
    assert "generation" not in said
    torch.testing.assert_close(
        plain(tmp_path / "reward", AutoModelForSequenceClassification), expected, rtol=1e-4, atol=1e-5
    )
    steps = Head("token", Labels(("wrong", "right"), "single_label_classification"))
    run, expected = make_run("full", name="steps", head=steps)
    export(run, "--to", tmp_path / "steps-out")
    torch.testing.assert_close(plain(tmp_path / "steps-out", AutoModelForTokenClassification), expected)
    run, expected = make_run("norms", name="norms", files=[str(NORMS)])
    export(run, "--to", tmp_path / "norms-out", "--plugin", NORMS)
    torch.testing.assert_close(plain(tmp_path / "norms-out"), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"--no-merge: what tuner norms saves in .* is no PEFT adapter"):
        export(run, "--to", tmp_path / "out", "--plugin", NORMS, "--no-merge")


def test_what_cannot_be_merged_is_kept_as_an_adapter(make_run: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, expected = make_run("peft", type="prompt_tuning", num_virtual_tokens=3)
    with pytest.raises(UserError, match=r"PEFT cannot merge this adapter \(PROMPT_TUNING\)"):
        export(run, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(run, "--to", tmp_path / "out", "--no-merge")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "out")), expected)
    with pytest.raises(UserError, match=r"--no-merge: .* has no adapter, but a whole model"):
        export(tiny_model_dir, "--to", tmp_path / "no", "--no-merge")


def test_quantized_weights_are_dequantized_for_the_merge(make_run: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run, plain_base = make_run("lora")
    marker = json.loads((run / "swiftplug.json").read_text())
    marker["model_options"]["quantization"] = "4bit"
    (run / "swiftplug.json").write_text(json.dumps(marker))
    said = export(run, "--to", tmp_path / "out")
    assert "the base model was quantized (4bit): the adapter is merged into its dequantized weights" in said
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (plain(tmp_path / "out") - plain_base).abs().max() > 1e-3  # it is not a merge into the base itself
    marker["model_options"]["quantization"] = "8bit"
    (run / "swiftplug.json").write_text(json.dumps(marker))
    with pytest.raises(UserError, match="quantized to 8bit, which rounds activations too"):
        export(run, "--to", tmp_path / "no")


def test_a_writing_that_goes_wrong_leaves_nothing(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are not those of the run, a missing one, another end of an answer, and a full disk."""
    from transformers import LlamaForCausalLM, PreTrainedModel

    run, _ = make_run("full")
    write = PreTrainedModel.save_pretrained

    def spoiled(spoil: Callable[[Path], None]) -> None:
        def save(self: Any, folder: Path, **options: Any) -> None:
            write(self, folder, **options)
            spoil(Path(folder))

        monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save)

    def change(folder: Path) -> None:
        from safetensors.torch import save_file

        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][3] *= 1.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def lose(folder: Path) -> None:
        from safetensors.torch import save_file

        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def other_end(folder: Path) -> None:
        place = folder / "generation_config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "eos_token_id": 1}))

    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    for spoil, message in (
        (change, "what was written is not the run's model: its logits differ by"),
        (lose, "does not open what was written: missing weights: model.norm.weight"),
        (other_end, r"ends answers at \[1\], the run at \[2\]"),
        (fill, "the disk is full; free some space, nothing is left there"),
    ):
        spoiled(spoil)
        with pytest.raises(UserError, match=message):
            export(run, "--to", tmp_path / "deep" / "out")
        assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_merges_into_other_weights_is_refused(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from peft.tuners.lora import Linear

    run, _ = make_run("lora")
    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda *arguments: delta(*arguments) * 1.01)
    with pytest.raises(UserError, match=r"is not the run's model: its logits differ by .*; keep its adapter: --no-me"):
        export(run, "--to", tmp_path / "out", "--dtype", dtype)
    export(run, "--to", tmp_path / "out", "--dtype", dtype, "--no-merge")


def test_float64_decides_where_a_model_amplifies_the_rounding_of_float32(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def amplified(model: Any, texts: Any) -> torch.Tensor:
        outputs = outputs_of(model, texts)
        return outputs + torch.randn_like(outputs) * 1e-3 if outputs.dtype == torch.float32 else outputs

    monkeypatch.setattr("swiftplug.export.export.outputs_of", amplified)
    run, expected = make_run("lora")
    assert "(tolerance 1e-05, in float64)" in export(run, "--to", tmp_path / "out")
    torch.testing.assert_close(plain(tmp_path / "out"), expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused_before_the_model_is_loaded(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftplug.runs.arguments.Arguments.load_model", None)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for arguments, message in (
        (["--to", tmp_path / "there"], "exists; name a folder that does not"),
        (["--to", tmp_path / "link"], "exists; name a folder that does not"),
        (["--to", tmp_path / "file" / "x" / "y"], r"--to .*/file/x/y: .*/file is no folder, so none can be made in it"),
        (["--to", tmp_path / "link" / "x"], r"--to .*/link/x: .*/link is no folder, so none can be made in it"),
        (["--to", tiny_model_dir / "x" / "y"], r"--to .*/x/y: is inside of .*, which is exported; name a folder outs"),
        (["--to", tmp_path / "x", "--gguf"], "needs llama.cpp's convert_hf_to_gguf.py, which is not on the PATH"),
        (["--to", tmp_path / "x", "--gguf", "--llama-cpp", tmp_path], "has no convert_hf_to_gguf.py"),
        (["--to", tmp_path / "x", "--outtype", "f16"], "are for --gguf"),
        (["--to", tmp_path / "x", "--private"], "is for --push"),
        (["--to", tmp_path / "x", "--push", "name"], "found 'name', expected the name of a repository"),
        (["--to", tmp_path / "x", "--set", "dtyp=1"], "dtyp"),
    ):
        with pytest.raises(UserError, match=message):
            export(tiny_model_dir, *arguments)
    with pytest.raises(UserError, match=r"no folder .*; did you mean"):
        export(f"{tiny_model_dir}x", "--to", tmp_path / "x")


def test_the_converter_gets_the_folder_and_what_it_says_on_failure_is_shown(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run("lora")
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import json, os, sys\n"
        "assert os.path.isfile(sys.argv[1] + '/model.safetensors')\n"
        "open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(json.dumps(sys.argv[2:]))\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    export(run, "--to", tmp_path / "out", "--gguf", "--outtype", "q8_0")
    given = json.loads((tmp_path / "out" / "out-q8_0.gguf").read_text())
    assert given[-4:] == ["--outtype", "q8_0", "--model-name", "out"]
    script.write_text("raise SystemExit('Model LlamaForCausalLM is not supported')")
    with pytest.raises(UserError, match="failed: Model LlamaForCausalLM is not supported"):
        export(run, "--to", tmp_path / "no", "--gguf")
    assert not (tmp_path / "no").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server that speaks as much of the hub's API as an upload needs; what it got."""
    got: dict[str, Any] = {"files": {}, "held": None}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, body: Any, status: int = 200, **headers: str) -> None:
            sent = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(sent)),
                **headers,
            }.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(sent)

        def do_GET(self) -> None:
            got["token"] = self.headers["Authorization"]
            if self.path == "/api/whoami-v2":
                self.answer({"type": "user", "name": "org"})
            elif got["held"] is None:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            else:
                held = [{"type": "file", "path": name, "oid": "0", "size": 1} for name in got["held"]]
                whole = {"id": "org/name", "private": False, "tags": []}
                tree = "/tree/" in self.path
                self.answer(held if tree else {**whole, "siblings": [{"rfilename": name} for name in got["held"]]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                got["created"] = json.loads(body)
                got["held"] = [".gitattributes"]
                self.answer({"url": f"http://{self.headers['Host']}/org/name"})
            elif "/preupload/" in self.path:
                files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
                self.answer({"files": files})
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        got["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": f"http://{self.headers['Host']}/org/name/commit/1", "commitOid": "1"})
            else:
                self.answer({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield got
    server.shutdown()
    server.server_close()


def test_a_model_is_uploaded_with_a_card_and_without_a_token_in_it(make_run: Any, tmp_path: Path, hub: Any) -> None:
    run, _ = make_run("lora", r=4)
    config = {"model": "HuggingFaceTB/SmolLM2", "dataset": ["openai/gsm8k:main/train#500", str(tmp_path / "own.jsonl")]}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "training": {"learning_rate": 0.001}}))
    (run / "run.json").write_text(json.dumps({"versions": {"swiftplug": "0"}}))
    (run / "log.jsonl").write_text('{"eval_loss": 1.5, "eval_runtime": 2.0}\n{"eval_loss": 1.25}\n')
    said = export(run, "--to", tmp_path / "out", "--push", "org/name", "--private")
    assert "uploaded: http://127.0.0.1" in said
    assert (hub["created"]["name"], hub["created"]["organization"]) == ("name", "org")
    assert hub["created"].get("private") or hub["created"].get("visibility") == "private"
    assert hub["token"] == "Bearer hf_secret"
    assert hub["files"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert not [
        name for name, content in hub["files"].items() if b"hf_secret" in content or str(tmp_path).encode() in content
    ]
    _, front, text = hub["files"]["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["datasets"] == ["openai/gsm8k"]
    assert card["pipeline_tag"] == "text-generation"
    assert card["model-index"][0]["results"][0]["metrics"] == [{"type": "loss", "value": 1.25}]
    assert {"swiftplug", "sft", "lora"} <= {*card["tags"]}
    assert "| dataset | `own.jsonl` |" in text
    assert "| r | `4` |" in text
    with pytest.raises(UserError, match="its base model is a folder of this machine"):
        export(run, "--to", tmp_path / "again", "--push", "org/other", "--no-merge")
    with pytest.raises(UserError, match=r"--push: org/name exists and holds model\.safetensors and other files"):
        hub["held"] = ["README.md", "model.safetensors"]
        export(run, "--to", tmp_path / "again", "--push", "org/name")
    assert not (tmp_path / "again").exists()


def test_a_classifier_of_which_no_run_tells_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As a language model it would open with a head of random numbers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=3).save_pretrained(tmp_path / "c")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "c")
    with pytest.raises(UserError, match="is a LlamaForSequenceClassification, whose head gives no tokens"):
        export(tmp_path / "c", "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()

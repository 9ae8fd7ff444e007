"""`swiftplug export`: writes the model of a run as a folder that other programs open, and proves that it is the same.

1. The target, the plugins, the converter and the hub are checked, and the tokenizer is loaded.
2. The run's model is loaded as `sample` loads it, with its adapter beside the weights, and gives its logits for some
   texts.
3. The adapter is merged, and the model is written beside the target.
4. Plain Transformers, or PEFT, opens what was written; logits and the end of a greedy answer are compared.
5. The folder gets its name; llama.cpp converts it before, the hub takes it after that.
"""

import gc
import json
import shutil
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, set_peft_model_state_dict
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.export.card import ModelFacts, write_card
from swiftplug.export.gguf import Converter
from swiftplug.export.hub import HubTarget
from swiftplug.export.proof import (
    TOLERANCE,
    Difference,
    describe_proof,
    greedy_answer,
    greeting,
    in_float32,
    open_plain,
    outputs_of,
    proof_texts,
)
from swiftplug.formatting import format_count, format_duration
from swiftplug.plugin import Chat
from swiftplug.plugin.registry import fields_of
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress, on_disk, print_line
from swiftplug.runs.errors import explaining_interruption, naming_full_disk, naming_plugins
from swiftplug.runs.folder import KEPT_BASE, Marker, atomic_folder, base_models, is_adapter_run
from swiftplug.runs.model import GENERATION_CONFIG, auto_class, end_where_trained, merge_adapter
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.runs.trained import recorded_config, recorded_metrics, recorded_rows

_NUM_ROWS = 2
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export(
    config: SampleConfig,
    folder: Path,
    *,
    merge: bool = True,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    converter: Converter | None = None,
    hub: HubTarget | None = None,
) -> None:
    """Write the model that `config.model` names into a new folder, with which any program can go on.

    Args:
        config: A config whose model is what to export, as for sampling.
        folder: The folder to write; it must not exist.
        merge: Whether an adapter is merged into its base model, and not written as an adapter.
        dtype: The type of the written weights; `auto` is that of the base model, or of the run's if it saved all.
        converter: What makes a GGUF file of it; None for none.
        hub: Where to upload it; None for nowhere.

    Raises:
        UserError: The input is wrong, or what was written is not the run's model; nothing is left at `folder`.
        Interrupted: Ctrl-C, or SIGTERM, has stopped it; nothing is left at `folder`.

    Example:
        >>> export(load_model_config("runs/first", {}, []), Path("first-merged"), dtype="bfloat16")
    """
    console, started = Console(), time.monotonic()
    with explaining_interruption(lambda: f"stopped; nothing is left at {folder}"), RunProgress(console) as progress:
        with progress.start("loading plugins and tokenizer"):
            exporter = Exporter(config, merge=merge, dtype=dtype, report=lambda line: progress.print_line(line))
            if hub is not None:
                if not merge and Path(exporter.base).is_dir():
                    raise UserError(
                        "--push: nobody could open this adapter, as its base model is a folder of this machine; leave "
                        "out --no-merge"
                    )
                hub.check()
        full_disk = naming_full_disk(f"--to {folder}", "free some space, nothing is left there")
        with naming_plugins(exporter.args.plugins.all()), full_disk, atomic_folder(folder) as staging:
            name = exporter.name
            with progress.start(f"loading {name}", live=on_disk([name])):
                exporter.load()
            with progress.start("writing the model"):
                exporter.write(staging, folder)
            with progress.start("comparing what was written with the run"):
                exporter.prove(staging)
            if converter is not None:
                with progress.start("converting to GGUF", live=False):
                    file = converter.convert(staging, folder.name)
                print_line(console, f"GGUF: {folder / file}")
            write_card(staging, exporter.facts(), hub.repo_id if hub else folder.name)
        print_line(console, f"exported to {folder} in {format_duration(time.monotonic() - started)}", "bold")
        if hub is not None:
            with progress.start(f"uploading to {hub.repo_id}", live=False):
                place = hub.upload(folder)
            print_line(console, f"uploaded: {place}", "bold")


class Exporter:
    """One export and its steps; `export` calls them in order.

    Attributes:
        args: The arguments of the run whose model it is.
        name: Its folder or hub id.
    """

    def __init__(self, config: SampleConfig, *, merge: bool, dtype: str, report: Callable[[str], None]) -> None:
        assert config.model is not None
        self.name, self.merge, self.report = config.model.name, merge, report
        self.recorded = recorded_config(self.name)
        self.args = Arguments(config, resolve_plugins(config, ("model", "tools")))
        self.is_adapter = self.args.plugins.model is None and is_adapter_run(self.name)
        self.wanted: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
        self.marker = Marker.read(self.name) if self.args.plugins.model is None else None
        # What the model was made from; an adapter that was merged on the way is a base model too.
        self.base = str(
            (self.marker.base_choice(self.name) if self.marker and self.is_adapter else {"name": ""})["name"]
        )
        if not merge:
            self._check_adapter()
        elif self.is_adapter:
            self._check_quantization()
        with naming_plugins(self.args.plugins.all()):
            self.tokenizer = self.args.load_tokenizer()
        head = self.args.head
        self.kind = head.kind if head is not None else "language"
        self.auto = auto_class(self.kind)
        for line in [*self.args.plugins.registry.notes, *self.args.notes]:
            report(line)

    def _check_adapter(self) -> None:
        """Refuse to keep an adapter where there is none that PEFT can open."""
        if not self.is_adapter:
            raise UserError(f"--no-merge: {self.name} has no adapter, but a whole model; leave it out")
        if not all((Path(self.name).expanduser() / file).is_file() for file in _ADAPTER_FILES):
            assert self.marker is not None
            tuner = self.marker.tuner["name"].removeprefix("swiftplug:")
            raise UserError(f"--no-merge: what tuner {tuner} saves in {self.name} is no PEFT adapter; leave it out")
        if self.args.base_of(self.name).plugins.model is not None:
            raise UserError(
                f"--no-merge: a plugin built the base model of {self.name}, and no other program can; leave it out"
            )

    def _check_quantization(self) -> None:
        """Refuse to merge into weights whose dequantized form does not give the logits of the run."""
        bits = self.args.base_of(self.name).config.model_options.quantization
        if bits == "8bit":
            raise UserError(
                f"{self.name}: its base model was quantized to 8bit, which rounds activations too, so a merged model "
                "gives other logits; keep the adapter: --no-merge"
            )
        if bits is not None:
            self.report(f"the base model was quantized ({bits}): the adapter is merged into its dequantized weights")

    def load(self) -> None:
        """Load the run's model and compute what it gives, its adapter beside the weights."""
        self.model: Any = self.args.load_model(merge=False, dequantize=self.merge)
        inner = _inner(self.model)
        self.chat: Chat | None = self.args.load_chat(inner) if self.kind == "language" else None
        self.dtype = self.wanted or _stored_dtype(self.model)
        where, rows = recorded_rows(self.recorded, self.args.plugins.registry, _NUM_ROWS)
        self.texts_from = f"a built-in one, and rows of {where}" if rows else "a built-in one"
        self.texts = proof_texts(self.tokenizer, self.args.plugins.one("tools").bound, rows)
        self.reference = outputs_of(in_float32(self.model), self.texts)
        self.precision = "float32"

    def write(self, staging: Path, folder: Path) -> None:
        """Write the model, or the adapter, with tokenizer, chat template and generation config."""
        model = self.model
        if self.chat is not None:
            end_where_trained(_inner(model), self.chat.end_ids)
        if self.merge:
            self._write_merged(staging)
        else:
            self._write_adapter(staging, folder)
        self.tokenizer.save_pretrained(staging)
        if self.chat is not None:
            self.greeting = greeting(self.tokenizer, self.chat)
            self.answer = greedy_answer(self.model, self.greeting, self.chat.end_ids)

    def _write_merged(self, staging: Path) -> None:
        """Write the whole model; its weights are then those that were written, in float32."""
        if isinstance(self.model, PeftModel):
            self.model = merge_adapter(self.model)
            if isinstance(self.model, PeftModel):
                method: Any = self.model.active_peft_config.peft_type
                raise UserError(
                    f"{self.name}: PEFT cannot merge this adapter ({method.value}) into the weights; keep it: "
                    "--no-merge"
                )
            if self.dtype != torch.float32:  # else what is opened again is compared with the run itself
                self._check_same(self.model, "its model, with the adapter merged,")
        if not isinstance(self.model, PreTrainedModel):
            raise UserError(
                f"{self.name}: its tuner makes a {type(self.model).__name__} of the model, which is no model of "
                "Transformers, so no other program could open it"
            )
        self.model.requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        self.model.save_pretrained(staging)
        if self.dtype != torch.float32:
            self.written = outputs_of(in_float32(self.model), self.texts)

    def _check_same(self, model: Any, what: str) -> Difference:
        """How far a model with weights in float32 is from the run's; one that computes something else is refused."""
        found = Difference.between(outputs_of(model, self.texts), self.reference)
        if self.merge and self.is_adapter and not found.largest <= TOLERANCE:
            # A model may amplify float32's own rounding; then float64 decides, in which both need twice the memory.
            self.precision = "float64"
            outputs = outputs_of(model.double(), self.texts)
            model.float()
            beside: Any = self.args.load_model(merge=False, dequantize=True)
            found = Difference.between(outputs, outputs_of(beside.double(), self.texts))
        self._check(found, what)
        return found

    def _check(self, found: Difference, what: str) -> None:
        """Refuse what computes something else than the run's model."""
        if not found.largest <= TOLERANCE:
            keep = "; keep its adapter: --no-merge" if self.merge and self.is_adapter else ""
            raise UserError(
                f"{self.name}: {what} is not the run's model: its logits differ by {found.largest:.2g} of the largest, "
                f"{found.scale:.3g}; nothing was exported{keep}"
            )

    def _write_adapter(self, staging: Path, folder: Path) -> None:
        """Write the adapter as it was saved, with a base model that can be found from elsewhere."""
        run = Path(self.name).expanduser()
        assert self.marker is not None
        base = self.args.base_of(self.name)
        options, place = base.config.model_options, Path(self.base)
        opened = named = self.base
        if place.name == KEPT_BASE and place.is_dir():
            shutil.copytree(place, staging / KEPT_BASE)
            opened, named = str(staging / KEPT_BASE), str((folder / KEPT_BASE).absolute())
        elif place.is_dir():
            self.report(
                f"base model: the folder {place}; elsewhere, load the adapter onto the same model by its name there"
            )
        self.opening: dict[str, Any] = {
            "pretrained_model_name_or_path": opened,
            "revision": options.revision,
            "trust_remote_code": options.trust_remote_code,
        }
        quantization = getattr(_inner(self.model).config, "quantization_config", None)
        if quantization is not None:
            self.opening["quantization_config"] = quantization
        settings = json.loads((run / _ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        settings |= {"base_model_name_or_path": named, "revision": options.revision}
        (staging / _ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        weights = load_file(run / _ADAPTER_FILES[1])
        self.dtype = self.wanted or torch.float32
        if self.wanted is not None:
            weights = {name: each.to(self.wanted) for name, each in weights.items()}
        save_file(weights, staging / _ADAPTER_FILES[1], metadata={"format": "pt"})
        if self.dtype != torch.float32:
            set_peft_model_state_dict(self.model, {name: each.to(torch.float32) for name, each in weights.items()})
            self.written = outputs_of(self.model, self.texts)
        generation: Any = _inner(self.model).generation_config
        if generation is not None:
            generation.save_pretrained(staging)

    def prove(self, staging: Path) -> None:
        """Open what was written with plain Transformers or PEFT, and compare it with the run.

        Raises:
            UserError: It gives other logits, or another answer.
        """
        end_ids = self.chat.end_ids if self.chat is not None else []
        self.model = None
        gc.collect()
        trusted = self.args.config.model_options.trust_remote_code
        opened = open_plain(staging, self.auto, None if self.merge else self.opening, trust_remote_code=trusted)
        rounding = None
        if self.dtype == torch.float32:
            found = self._check_same(opened, "what was written")
        else:
            outputs = outputs_of(opened, self.texts)
            self._check(Difference.between(outputs, self.written), "what was written")
            found, rounding = (Difference.between(each, self.reference) for each in (outputs, self.written))
        self.report(describe_proof(self.dtype, found, rounding, self.precision, self.texts, self.texts_from))
        if self.chat is None:
            return
        generation = GenerationConfig.from_pretrained(staging) if (staging / GENERATION_CONFIG).is_file() else None
        ends = generation.eos_token_id if generation is not None else end_ids
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        if {*ends} != {*end_ids}:
            raise UserError(f"{self.name}: its {GENERATION_CONFIG} ends answers at {ends}, the run at {end_ids}")
        if greedy_answer(opened, self.greeting, None if self.merge else ends) != self.answer:
            raise UserError(f"{self.name}: what was written answers otherwise than the run; nothing was exported")
        names = ", ".join(repr(self.tokenizer.decode([each])) for each in end_ids)
        ended = (
            f"ended by {self.tokenizer.decode(self.answer[-1:])!r}"
            if self.answer[-1] in end_ids
            else "not ended by then"
        )
        tokens = format_count(len(self.answer), "token")
        self.report(f"generation: the same greedy answer, {tokens}, {ended}; answers end at {names}")

    def facts(self) -> ModelFacts:
        """What the model card says."""
        task = (self.marker.task or {}) if self.marker is not None else {}
        base = self.base or str(fields_of(self.recorded.get("model") or "")["name"])
        tuner = self.marker.tuner if self.marker is not None else {}
        return ModelFacts(
            kind=self.kind,
            base=([*base_models(self.name)] or [base])[-1],
            is_adapter=not self.merge,
            was_merged=self.merge and self.is_adapter,
            task=str(task.get("name", "")).removeprefix("swiftplug:"),
            tuner=str(tuner.get("name", "")).removeprefix("swiftplug:"),
            tuner_options=tuner.get("options", {}),
            datasets=[str(fields_of(each)["name"]) for each in self.recorded.get("dataset", ())],
            dtype=str(self.dtype).removeprefix("torch."),
            training=self.recorded.get("training", {}),
            metrics=recorded_metrics(self.name),
        )


def _inner(model: Any) -> Any:
    """The model below an adapter of PEFT."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _stored_dtype(model: torch.nn.Module) -> torch.dtype:
    """The type of a base model's weights; of a model without an adapter, the widest of its types."""
    if isinstance(model, PeftModel):
        dtype: torch.dtype = _inner(model).dtype
        return dtype
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return reduce(torch.promote_types, types)

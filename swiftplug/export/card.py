"""The model card: `README.md` of an exported folder, from which a hub shows what the model is and how to use it."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from swiftplug import __version__
from swiftplug.data.read.files import reader_of
from swiftplug.data.read.sources import HUB_ID
from swiftplug.formatting import format_number
from swiftplug.runs.folder import KEPT_BASE

_PIPELINES = {"language": "text-generation", "sequence": "text-classification", "token": "token-classification"}
_CLASSES = {
    "language": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}
_USED = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
_TIMES = ("runtime", "per_second", "preparation_time")


class ModelFacts(NamedTuple):
    """What a model card says of a model.

    Attributes:
        kind: The kind of its head, as in `Task.head`.
        base: The hub id, folder or plugin that training began from; empty if it is not known.
        is_adapter: Whether it is an adapter, which needs its base model.
        was_merged: Whether an adapter was merged into it.
        task: The task that it was trained for; empty if it is not known.
        tuner: The tuner that trained it.
        tuner_options: The tuner's options.
        datasets: The datasets, as the config names them.
        dtype: The type of its weights.
        training: The config's `training:`.
        metrics: What was measured last, by name.
    """

    kind: str
    base: str
    is_adapter: bool
    was_merged: bool
    task: str
    tuner: str
    tuner_options: dict[str, Any]
    datasets: list[str]
    dtype: str
    training: dict[str, Any]
    metrics: dict[str, float]

    @property
    def evaluated(self) -> dict[str, float]:
        """What was measured on the evaluation's rows."""
        names = [name for name in self.metrics if name.startswith("eval_") and not name.endswith(_TIMES)]
        return {name: self.metrics[name] for name in names if isinstance(self.metrics[name], (int, float))}


def write_card(folder: Path, facts: ModelFacts, title: str) -> None:
    """Write the model card into a folder. Paths of this machine stay out of it: of a file only its name is written."""
    base, datasets = _public(facts.base), [_public(name) for name in facts.datasets]
    hub_base = hub_id(facts.base)
    results = [
        EvalResult(_PIPELINES[facts.kind], "evaluation set", "held-out rows", name.removeprefix("eval_"), value)
        for name, value in facts.evaluated.items()
    ]
    data = ModelCardData(
        base_model=hub_base,
        datasets=[found for name in facts.datasets if (found := hub_id(name))] or None,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag=_PIPELINES[facts.kind],
        tags=[tag for tag in ("swiftplug", facts.task, facts.tuner) if tag and ":" not in tag],
        model_name=title.rpartition("/")[2],
        eval_results=results or None,
    )
    made_from = f"`{base}`" if base else "a model"
    how = f", task `{facts.task}`" if facts.task else ""
    tuner = f", tuner `{facts.tuner}`" if facts.tuner else ""
    merged = ", with its adapter merged" if facts.was_merged else ""
    lines = [
        f"# {title.rpartition('/')[2]}",
        "",
        f"{made_from} fine-tuned with swiftplug {__version__}{how}{tuner}{merged}; weights in {facts.dtype}.",
        "",
    ]
    settings = {**facts.tuner_options, **{name: facts.training[name] for name in _USED if name in facts.training}}
    if settings or datasets:
        lines += ["| training | |", "| --- | --- |"]
        lines += [f"| dataset | `{_cell(name)}` |" for name in datasets]
        lines += [f"| {name} | `{_cell(value)}` |" for name, value in settings.items()] + [""]
    if facts.evaluated:
        lines += ["| measured on held-out rows | |", "| --- | --- |"]
        lines += [f"| {name} | {format_number(value)} |" for name, value in facts.evaluated.items()] + [""]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(
        [*lines, "```python", *_example(folder, facts, title), "```", ""]
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _example(folder: Path, facts: ModelFacts, title: str) -> list[str]:
    """Python that opens the model."""
    auto, name = _CLASSES[facts.kind], repr(title)
    if not facts.is_adapter:
        lines = [
            f"from transformers import AutoTokenizer, {auto}",
            "",
            f'model = {auto}.from_pretrained({name}, dtype="auto")',
        ]
    else:
        has_base = (folder / KEPT_BASE).is_dir()
        base = f'{name}, subfolder="{KEPT_BASE}"' if has_base else repr(_public(facts.base))
        lines = [
            "from peft import PeftModel",
            f"from transformers import AutoTokenizer, {auto}",
            "",
            f"base = {auto}.from_pretrained({base})",
            f"model = PeftModel.from_pretrained(base, {name})",
        ]
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({name})")
    if facts.kind == "language":
        lines += [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)",
            'prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
            "answer = model.generate(**prompt, max_new_tokens=256)",
            "print(tokenizer.decode(answer[0, prompt.input_ids.shape[1] :], skip_special_tokens=True))",
        ]
    return lines


def hub_id(name: str) -> str | None:
    """The repository on the hub that a model or dataset of a config is; None if it is a file, a folder or a plugin."""
    match = HUB_ID.match(name)
    path = Path(name.rpartition("#")[0] or name).expanduser()
    return match[1] if match and not path.exists() and reader_of(path) is None else None


def _public(name: str) -> str:
    """A model or dataset without the folders of this machine."""
    return name if hub_id(name) else Path(name).name


def _cell(value: object) -> str:
    """A value in a table of Markdown."""
    return str(value).replace("|", "\\|").replace("`", "'").replace("\n", " ")

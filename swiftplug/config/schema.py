"""What a config may contain: every key with its type, default and help text.

A key declared here is known to YAML and `--set`; with a panel, it is an option of the command line too.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator

from swiftplug.config.keys import KeySources, key
from swiftplug.plugin.registry import PluginChoice, PluginField, fields_of

DATA = "Model and data"
PLUGINS = "Plugins"
GENERATION = "Generation"
SELECTION = "Selection"
RUN = "Run"
PANELS = (DATA, PLUGINS, GENERATION, SELECTION, RUN)
"""The panels of `--help`, in order."""

_TEMPLATE = "Jinja file with a chat template, used instead of the tokenizer's own."


def _as_list(value: Any) -> Any:
    """Accept a single item in place of a list."""
    return [value] if isinstance(value, (str, dict, PluginChoice)) else value


def _scorer_fields(value: Any) -> Any:
    """Split a scorer as written in a config into its fields; `weight` is not an option of the plugin."""
    if isinstance(value, dict) and "weight" in value:
        plugin = {key: item for key, item in value.items() if key != "weight"}
        return {**fields_of(plugin), "weight": value["weight"]}
    return fields_of(value)


class ScorerChoice(PluginChoice):
    """An ORM, a PRM or an environment that a config names, with its options and the weight of its rewards."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    def to_yaml(self) -> str | dict[str, Any]:
        """The choice as a config writes it."""
        if self.weight == 1:
            return super().to_yaml()
        return {"name": self.name, "weight": self.weight, **self.options}


def _built_in(name: str) -> PluginChoice:
    # By its qualified name, so that no other distribution's plugin can take its place; not validated, to stay fast.
    return PluginChoice.model_construct(name=f"swiftplug:{name}")


PluginList = Annotated[list[PluginField], BeforeValidator(_as_list)]
ScorerField = Annotated[ScorerChoice, BeforeValidator(_scorer_fields)]
ScorerList = Annotated[list[ScorerField], BeforeValidator(_as_list)]
StringList = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A mapping without unknown keys, in which no value is silently converted to another type."""

    # Validators are built when the first config is checked: `--help` needs none.
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class PluginsSection(Section):
    """The `plugins:` section: where plugins may come from."""

    files: StringList = key(
        [], "Load plugins from a Python file. Repeat for several.", PLUGINS, metavar="FILE.py", flag="--plugin"
    )
    allow: StringList | None = key(
        None, "Distributions whose plugins may be loaded, besides the built-in ones; null allows all."
    )


class ModelOptions(Section):
    """The `model_options:` section: how a model from a folder or the hub is loaded."""

    revision: str | None = key(None, "Branch, tag or commit on the hub; null is the main branch.")
    attn_implementation: str | None = key(None, "Attention implementation; null is Transformers' default.")
    quantization: Literal["4bit", "8bit"] | None = key(
        None, "Quantization of the frozen base model; 4bit is NF4, as in QLoRA."
    )
    trust_remote_code: bool = key(False, "Allow custom model code from the hub.")


class SampleDataOptions(Section):
    """The `data:` section of a sampling run: how rows are read and rendered."""

    template: str | None = key(None, _TEMPLATE)
    columns: dict[str, str] = key({}, "Columns to rename: {name in the dataset: new name}.")

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: dict[str, str]) -> dict[str, str]:
        targets = list(value.values())
        twice = {target for target in targets if targets.count(target) > 1}
        if twice:
            raise ValueError(f"two columns cannot both be renamed to {sorted(twice)[0]!r}")
        return value


class DataOptions(SampleDataOptions):
    """The `data:` section of a training run: how rows are read and become batches."""

    template: str | None = key(None, _TEMPLATE, DATA, metavar="FILE.jinja")
    max_length: int = key(2048, "Maximum number of tokens per example, and the length of a packed row.", ge=2)
    too_long: Literal["drop", "truncate", "split"] | None = key(
        None,
        "What to do with a longer example: drop it, truncate its end, or split it into several. "
        "null depends on the task: pt splits, sft drops.",
    )
    packing: bool = key(False, "Pack short training examples into rows of max_length tokens.")
    num_proc: int = key(1, "Number of processes for tokenization, at most: few rows are encoded in one.", ge=1)
    val_size: float | int = key(
        0, "Rows to hold out for evaluation if there is no eval_dataset: a fraction (below 1.0) or a number.", ge=0
    )
    mix: Literal["shuffle", "order"] | list[float] = key(
        "shuffle",
        "How several datasets make an epoch: all their rows shuffled together, one dataset after the other (order), or "
        "drawn anew in each epoch by a list of weights, one per dataset.",
    )
    mix_temperature: float | None = key(
        None, "Weigh each dataset by the T-th root of its size instead: 1 as they are, more for more even shares.", ge=1
    )
    streaming: bool = key(
        False,
        "Read and encode training rows as they are needed, also from the hub, for data larger than the disk; needs "
        "training.max_steps.",
    )
    shuffle_buffer: int = key(4096, "Number of rows that are shuffled together with data.streaming.", ge=1)
    group_by_length: bool = key(True, "Batch examples of similar length together, so that less padding is needed.")
    cache_dir: str | None = key(
        None,
        "Folder for encoded datasets, limited to 20 GB (least recently used removed); "
        "null is $SWIFTPLUG_CACHE, else ~/.cache/swiftplug/data.",
    )

    @property
    def mixes(self) -> bool:
        """Whether datasets are kept apart, to be drawn from by weight or one after the other."""
        return self.mix != "shuffle" or self.mix_temperature is not None

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, value: str | list[float]) -> str | list[float]:
        if isinstance(value, list) and not all(0 < weight < math.inf for weight in value):
            raise ValueError(f"found {value}, expected weights above 0")
        return value

    @field_validator("val_size")
    @classmethod
    def _check_val_size(cls, value: float | int) -> float | int:
        if isinstance(value, float) and value >= 1:
            raise ValueError(
                f"found {value}, expected a fraction below 1, or a whole number of rows such as {round(value)}"
            )
        return value


class RayOptions(Section):
    """The `ray:` section: where Ray runs, and what each of its actors gets."""

    address: str | None = key(
        None,
        "Ray cluster to sample on, with --executor ray: HOST:PORT, ray://HOST:PORT or auto. Default: a Ray of its own.",
        RUN,
        metavar="ADDRESS",
        flag="--ray-address",
        min_length=1,
    )
    num_cpus: float = key(1, "Processors that Ray gives each engine.", ge=0, allow_inf_nan=False)
    num_gpus: float = key(0, "GPUs that Ray gives each engine.", ge=0, allow_inf_nan=False)
    scorers: int = key(1, "Number of actors that score; each has all scorers.", ge=1)
    scorer_num_cpus: float = key(1, "Processors that Ray gives each actor that scores.", ge=0, allow_inf_nan=False)
    scorer_num_gpus: float = key(0, "GPUs that Ray gives each actor that scores.", ge=0, allow_inf_nan=False)


class RunConfig(Section):
    """The keys that train and sample share, and where each got its value."""

    model: PluginField | None = key(None, "Hub id, model folder, folder of an earlier run, or model plugin.", DATA)
    dataset: PluginList = key(
        [],
        "File, hub id (org/name@revision:subset/split) or dataset plugin; append #N for the first N rows. "
        "Repeat to concatenate several.",
        DATA,
    )
    output_dir: str | None = key(
        None, "Folder of the run. Default: runs/ and the config's name.", RUN, metavar="FOLDER", min_length=1
    )
    tools: PluginField = key(
        _built_in("template"),
        "How tools and their calls are written in the prompt; template leaves it to the chat template.",
        PLUGINS,
    )
    plugins: PluginsSection = Field(default_factory=PluginsSection)
    model_options: ModelOptions = Field(default_factory=ModelOptions)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "Compute precision; trainable weights stay float32 in training. auto is the best one for the device."
    )
    seed: int = key(42, "Random seed.", ge=0, lt=2**32)

    _sources: KeySources = PrivateAttr(default_factory=KeySources)

    def where(self, *path: str | int) -> str:
        """Where a key got its value, as the beginning of an error message.

        Args:
            path: The key, and what is under it: a key of a section, or the index in a list.

        Returns:
            For example `train.yaml:7: loss`, `--set training.seed=1`, `--metric`; the key itself for a default.

        Example:
            >>> TrainConfig().where("training", "learning_rate")
            'training.learning_rate'
        """
        return self._sources.where(path)

    def set_sources(self, sources: KeySources) -> None:
        """Keep where each value came from, for `where`."""
        self._sources = sources

    def plain(self) -> dict[str, Any]:
        """Every key with its value as YAML writes it."""
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields}

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same run, wherever the values came from."""
        return type(self) is type(other) and isinstance(other, RunConfig) and self.model_dump() == other.model_dump()


def _plain(value: Any) -> Any:
    if isinstance(value, PluginChoice):
        return value.to_yaml()
    if isinstance(value, BaseModel):
        return value.model_dump()
    return [_plain(item) for item in value] if isinstance(value, list) else value


class DrawConfig(RunConfig):
    """The keys of runs that draw answers with an engine and score them: `sample`, and `train` in online tasks."""

    engine: PluginField = key(
        _built_in("transformers"),
        "What generates the answers: transformers, vllm, openai or none; in training, one that follows the model.",
        PLUGINS,
    )
    orm: ScorerList = key(
        [], "Outcome reward model that scores each answer: a plugin, folder or hub id. Repeat for several.", PLUGINS
    )
    prm: ScorerList = key(
        [],
        "Process reward model that scores each step of an answer: a plugin, folder or hub id. Repeat for several.",
        PLUGINS,
    )
    num_return_sequences: int = key(8, "Number of answers per question.", GENERATION, ge=1)
    max_new_tokens: int = key(512, "Maximum number of tokens per answer.", GENERATION, ge=1)
    temperature: float = key(1.0, "Sampling temperature; 0 is greedy decoding.", GENERATION, ge=0, allow_inf_nan=False)
    top_p: float = key(
        1.0, "Sample from the most likely tokens whose probabilities add up to X.", GENERATION, gt=0, le=1
    )
    top_k: int = key(0, "Sample from the N most likely tokens; 0 is all.", GENERATION, ge=0)
    prm_reduce: Literal["min", "mean", "last", "prod"] = key(
        "min", "How the scores of the steps are combined into the PRM score of the answer.", PLUGINS
    )
    score_timeout: float = key(600, "Time limit of one call of a scorer, in seconds.", gt=0, allow_inf_nan=False)


DRAW_KEYS = tuple(name for name in DrawConfig.model_fields if name not in RunConfig.model_fields)
"""The keys that `DrawConfig` adds."""


class TrainConfig(DrawConfig):
    """The config of a training run, merged and checked; `DRAW_KEYS` act in online tasks only."""

    task: PluginField = key(
        _built_in("sft"),
        "What is optimized, such as sft (answers), dpo (preferences), rm (rewards) or seq_cls (labels).",
        DATA,
    )
    eval_dataset: PluginList = key([], "Dataset to evaluate on. Repeat to concatenate several.", DATA)
    tuner: PluginField = key(_built_in("full"), "Full fine-tuning or an adapter, such as full or lora.", PLUGINS)
    optimizer: PluginField = key(
        _built_in("default"), "Optimizer and learning rate scheduler; default follows TrainingArguments.", PLUGINS
    )
    environment: ScorerField | None = key(
        None,
        "What answers the model when it draws, so that a candidate takes several turns, such as calculator.",
        PLUGINS,
    )
    reference: Literal["auto", "precompute"] = key(
        "auto",
        "Reference model of preferences: auto is the model with its tuner disabled, or a second copy; "
        "precompute computes its log-probabilities once, before training, and stores them.",
    )
    loss: PluginField = key(_built_in("cross_entropy"), "Loss function, such as cross_entropy or focal.", PLUGINS)
    loss_scale: PluginField = key(
        _built_in("default"),
        "Weight of each token in the loss, such as default, last_round or react; a+b multiplies them.",
        PLUGINS,
    )
    metrics: PluginList = key([], "Metric to compute at evaluation, such as acc or nlg. Repeat for several.", PLUGINS)
    callbacks: PluginList = key([], "Callback to run during training, such as early_stop. Repeat for several.", PLUGINS)
    data: DataOptions = Field(default_factory=DataOptions)
    training: dict[str, Any] = key({}, "Fields of transformers.TrainingArguments.")


class SampleConfig(DrawConfig):
    """The config of a sampling run, merged and checked."""

    adapter: str | None = key(
        None, "Adapter to load onto the model: folder of a run, or of a PEFT adapter.", DATA, metavar="FOLDER"
    )
    candidates_file: str | None = key(None, "Existing candidates to score, with --engine none.", DATA, metavar="FILE")
    system: str | None = key(None, "System message for rows that have none.", DATA, metavar="TEXT")
    shard: str | None = key(None, "Process only part I (0 to N-1) of N equal parts of the rows.", DATA, metavar="I/N")
    workers: int = key(1, "Number of processes that generate and score, each with a device of its own.", RUN, ge=1)
    executor: Literal["local", "ray"] = key(
        "local", "Where workers are: local is this machine, ray are actors of Ray.", RUN
    )
    ray: RayOptions = Field(default_factory=RayOptions)
    include_reference: bool = key(False, "Add the reference answer to the generated ones.", GENERATION)
    n_best_to_keep: int = key(1, "Maximum number of answers to keep per question.", SELECTION, ge=1)
    prm_threshold: float | None = key(
        None, "Keep only answers with at least this PRM score.", SELECTION, allow_inf_nan=False
    )
    easy_query_threshold: float | None = key(
        None, "Skip a question if more than this fraction of its answers is correct.", SELECTION, ge=0, le=1
    )
    keep_cut_off: bool = key(False, "Also keep answers that were cut off at the token limit.", SELECTION)
    data: SampleDataOptions = Field(default_factory=SampleDataOptions)

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, value: str | None) -> str | None:
        match = re.fullmatch(r"(\d+)/(\d+)", value) if value is not None else None
        if value is not None and (match is None or int(match[1]) >= int(match[2])):
            raise ValueError(f"found {value!r}, expected I/N with I from 0 to N-1, such as 0/3")
        return value

    @property
    def generates(self) -> bool:
        """Whether the run generates candidates, and does not only score existing ones."""
        return self.engine.name not in ("none", "swiftplug:none")

    @property
    def is_one_process(self) -> bool:
        """Whether the run generates and scores in its own process."""
        return self.workers == 1 and self.executor == "local"

    def shard_rows(self, total: int) -> range:
        """The indices of the rows of this shard; the shards of a dataset differ by one row at most."""
        index, count = map(int, (self.shard or "0/1").split("/"))
        return range(index * total // count, (index + 1) * total // count)

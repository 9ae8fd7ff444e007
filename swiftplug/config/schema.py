"""What a config may say, typed and checked: the sections that runs share, and a training run."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from swiftplug.config.data_options import DataOptions
from swiftplug.config.tree import Origins
from swiftplug.plugin.registry.choice import PluginChoice, WrittenChoice


def as_list(value: Any) -> Any:
    """One item stands for a list of one."""
    return [value] if isinstance(value, (str, dict, PluginChoice)) else value


Choices = Annotated[list[WrittenChoice], BeforeValidator(as_list)]
Texts = Annotated[list[str], BeforeValidator(as_list)]


class Section(BaseModel):
    """A mapping in which every key is known and no value changes its type on the quiet."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PluginsSection(Section):
    """The `plugins:` section: where plugins may come from.

    Attributes:
        files: Python files that register plugins, besides the installed distributions.
        allow: The distributions whose plugins may load. None: all that are installed. Built-ins always may.
    """

    files: Texts = []
    allow: Texts | None = None


class ModelOptions(Section):
    """The `model_options:` section: how a folder or hub id is loaded.

    Attributes:
        revision: Branch, tag or commit of a hub id. None: its main branch.
        attn_implementation: The attention of Transformers to use. None: the fastest exact one present.
        quantization: Bits of the frozen base under an adapter (`4bit` is NF4, as in QLoRA). None: not quantized.
        trust_remote_code: Whether code that came with the model may run.
    """

    revision: str | None = None
    attn_implementation: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False


class RunConfig(Section):
    """A run of any sort; it knows where each of its keys got its value."""

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def where(self, *path: str | int) -> str:
        """Where a key got its value, to begin an error message with.

        Args:
            path: The key, and what lies under it: a key of a section, or the index in a list.

        Returns:
            For instance `train.yaml:7: loss`, `--set training.seed=1`, `--metric`; the key itself for a default.

        Example:
            >>> TrainConfig().where("training", "learning_rate")
            'training.learning_rate'
        """
        return self._origins.where(path)

    def remember(self, origins: Origins) -> None:
        """Note where each part was said, for `where`."""
        self._origins = origins

    def __eq__(self, other: object) -> bool:
        """Equal when they ask for the same run, whichever file each came from."""
        return type(self) is type(other) and isinstance(other, RunConfig) and self.model_dump() == other.model_dump()


class TrainConfig(RunConfig):
    """A training run, whole: merged from defaults, YAML, `--set` and options, and checked.

    Attributes:
        task: What is optimised: `pt` (all text) or `sft` (answers).
        model: Folder, hub id or model plugin.
        dataset: Files, hub ids or dataset plugins, concatenated; a name may end in `#N` to take N rows.
        eval_dataset: Likewise, to evaluate on.
        output_dir: The run folder.
        tuner: Which parameters train, and how.
        optimizer: The optimizer and its scheduler.
        loss: The loss.
        loss_scale: The weight of each token in the loss.
        tools: How tools are written into the conversation.
        metrics: What is measured at evaluation besides the loss.
        callbacks: What acts during training.
        plugins: Where plugins may come from.
        data: How rows become batches.
        model_options: How the model is loaded.
        dtype: Of the weights; `auto` is the best that the device does well.
        seed: Of all that is random.
        training: Fields of `transformers.TrainingArguments`, checked by the training room.
    """

    task: Literal["pt", "sft"] = "sft"
    model: WrittenChoice | None = None
    dataset: Choices = []
    eval_dataset: Choices = []
    output_dir: str | None = None
    tuner: WrittenChoice = PluginChoice(name="swiftplug:full")
    optimizer: WrittenChoice = PluginChoice(name="swiftplug:default")
    loss: WrittenChoice = PluginChoice(name="swiftplug:cross_entropy")
    loss_scale: WrittenChoice = PluginChoice(name="swiftplug:default")
    tools: WrittenChoice = PluginChoice(name="swiftplug:template")
    metrics: Choices = []
    callbacks: Choices = []
    plugins: PluginsSection = PluginsSection()
    data: DataOptions = DataOptions()
    model_options: ModelOptions = ModelOptions()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(default=42, ge=0, lt=2**32)
    training: dict[str, Any] = {}

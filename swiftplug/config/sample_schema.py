"""What a sampling config may say, typed and checked."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from swiftplug.config.schema import Choices, ModelOptions, PluginsSection, RunConfig, Section, as_list
from swiftplug.plugin.registry.choice import PluginChoice, WrittenChoice, fields_of


class ScorerChoice(PluginChoice):
    """An ORM or a PRM that a config names, with its options and its weight.

    Attributes:
        weight: Of its score in the score that ranks candidates; 0 records the score and ranks by the others.
    """

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    def to_yaml(self) -> str | dict[str, Any]:
        """The choice as a config writes it."""
        if self.weight == 1:
            return super().to_yaml()
        return {"name": self.name, "weight": self.weight, **self.options}


def _scorer_fields(value: Any) -> Any:
    fields = fields_of(value)
    if isinstance(value, dict) and isinstance(fields, dict) and "weight" in fields.get("options", {}):
        options = dict(fields["options"])
        fields = {**fields, "weight": options.pop("weight"), "options": options}
    return fields


Scorers = Annotated[list[Annotated[ScorerChoice, BeforeValidator(_scorer_fields)]], BeforeValidator(as_list)]


class SampleData(Section):
    """The `data:` section of a sampling run.

    Attributes:
        columns: Columns to rename on reading, from the dataset's name to the one this program knows.
        template: A Jinja file in place of the tokenizer's own chat template.
    """

    columns: dict[str, str] = Field(default_factory=dict)
    template: str | None = None


@dataclass(frozen=True)
class Shard:
    """One part of a dataset cut into parts of consecutive rows.

    Attributes:
        index: Which, from 0.
        count: Of how many.
    """

    index: int
    count: int

    def rows(self, total: int) -> range:
        """The positions of its rows among all; the parts of one dataset differ by one row at most."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)


class SampleConfig(RunConfig):
    """A sampling run, whole: merged from defaults, YAML, `--set` and options, and checked.

    Attributes:
        model: Folder, hub id, the folder of a run, or model plugin; for a server, the name that it knows.
        adapter: The folder of a run, or of an adapter of PEFT, to put onto the model.
        dataset: Files, hub ids or dataset plugins, concatenated; a name may end in `#N` to take N rows.
        engine: What turns prompts into candidates.
        orm: Outcome reward models, each with a weight.
        prm: Process reward models, each with a weight.
        tools: How tools are written into the conversation.
        system: The system message of rows that have none.
        num_return_sequences: Candidates a row.
        n_best_to_keep: The most candidates of one row to keep.
        max_new_tokens: Tokens after which a candidate is cut off.
        temperature: Of the draw; 0 is greedy.
        top_p: Draw from the fewest tokens that have this probability together.
        top_k: Draw from so many of the likeliest tokens; 0 for all.
        prm_threshold: What a PRM's reward (the weighted mean of them) must reach.
        prm_reduce: How the rewards of an answer's steps become one.
        easy_query_threshold: A row is too easy when a larger share of its candidates is right.
        include_reference: Whether the reference answer is a candidate too.
        candidates_file: Candidates that exist, to be scored with `engine: none`.
        shard: `I/N`: of N parts of the rows only the one with this number, from 0.
        output_dir: The run folder.
        plugins: Where plugins may come from.
        data: How rows are read.
        model_options: How a local model is loaded.
        dtype: Of the weights of a local model; `auto` is the best that the device does well.
        seed: Of all that is random.
        score_timeout: Seconds that one call of a scorer may take.
    """

    model: WrittenChoice | None = None
    adapter: str | None = None
    dataset: Choices = Field(default_factory=list)
    engine: WrittenChoice = PluginChoice(name="swiftplug:transformers")
    orm: Scorers = Field(default_factory=list)
    prm: Scorers = Field(default_factory=list)
    tools: WrittenChoice = PluginChoice(name="swiftplug:template")
    system: str | None = None
    num_return_sequences: int = Field(default=8, ge=1)
    n_best_to_keep: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    prm_threshold: float | None = Field(default=None, allow_inf_nan=False)
    prm_reduce: Literal["min", "mean", "last", "prod"] = "min"
    easy_query_threshold: float | None = Field(default=None, ge=0, le=1)
    include_reference: bool = False
    candidates_file: str | None = None
    shard: str | None = None
    output_dir: str | None = None
    plugins: PluginsSection = PluginsSection()
    data: SampleData = SampleData()
    model_options: ModelOptions = ModelOptions()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(default=42, ge=0, lt=2**32)
    score_timeout: float = Field(default=600, gt=0, allow_inf_nan=False)

    @field_validator("shard")
    @classmethod
    def _index_below_count(cls, value: str | None) -> str | None:
        match = re.fullmatch(r"(\d+)/(\d+)", value) if value is not None else None
        if value is not None and (match is None or int(match[1]) >= int(match[2])):
            raise ValueError(f"found {value!r}, expected I/N with I from 0 to N-1, such as 0/3")
        return value

    @property
    def part(self) -> Shard:
        """The part of the rows that the run takes."""
        index, count = (self.shard or "0/1").split("/")
        return Shard(int(index), int(count))

"""The `data:` section of a config: how rows become batches."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class DataOptions(BaseModel):
    """How datasets are read, cut and batched.

    Attributes:
        max_length: The most tokens that an example may have, and the size of a packed row.
        too_long: What becomes of a longer row: `drop` it, `truncate` its end, or `split` it into several
            examples. None lets the task choose: `pt` splits, `sft` drops.
        packing: Whether to lay several short examples into one row of `max_length` tokens. Evaluation never does.
        template: A Jinja file in place of the tokenizer's own chat template.
        num_proc: Processes that encode.
        columns: Columns to rename on reading, from the dataset's name to the one this program knows.
        val_size: What to hold out of `dataset` for evaluation when there is no `eval_dataset`: a share of the rows
            (a float below 1) or a number of them (an integer). 0 holds out nothing.
        group_by_length: Whether a batch is made of examples of about the same length, so that it needs less padding.
        cache_dir: Where encoded datasets are kept. None: `$SWIFTPLUG_CACHE`, else `~/.cache/swiftplug/data`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    max_length: int = Field(default=2048, ge=2)
    too_long: Literal["drop", "truncate", "split"] | None = None
    packing: bool = False
    template: str | None = None
    num_proc: int = Field(default=1, ge=1)
    columns: dict[str, str] = {}
    val_size: float | int = Field(default=0, ge=0)
    group_by_length: bool = True
    cache_dir: str | None = None

    @field_validator("val_size")
    @classmethod
    def _share_or_count(cls, value: float | int) -> float | int:
        if isinstance(value, float) and value >= 1:
            raise ValueError(
                f"found {value}, expected a share below 1, or a whole number of rows such as {round(value)}"
            )
        return value

    @field_validator("columns")
    @classmethod
    def _distinct_targets(cls, value: dict[str, str]) -> dict[str, str]:
        targets = list(value.values())
        twice = {target for target in targets if targets.count(target) > 1}
        if twice:
            raise ValueError(f"two columns cannot both be renamed to {sorted(twice)[0]!r}")
        return value

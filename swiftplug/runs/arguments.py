"""What a run hands to its plugins as `args`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from swiftplug.config.schema import RunConfig
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.runs.plugins import RunPlugins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from swiftplug.runs.model import RunModel


class Arguments(RunArguments):
    """The arguments of a run; see `swiftplug.plugin.RunArguments` for what plugins use of them.

    Attributes:
        plugins: The run's plugins.
        notes: What the user should know about the tokenizer, once it is loaded.
    """

    def __init__(
        self,
        config: RunConfig,
        plugins: RunPlugins,
        training_args: "TrainingArguments | None" = None,
    ) -> None:
        self.config = config
        self.plugins = plugins
        self.training_args = training_args
        self.notes: list[str] = []

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._tokenizer

    def load_model(self, dtype: "torch.dtype | None" = None) -> "torch.nn.Module":
        return self._model.load(dtype)

    def export_model(self, folder: str | Path) -> str:
        return self._model.export(folder, self.load_tokenizer())

    def with_model(self, config: RunConfig, plugins: Sequence[LoadedPlugin]) -> "Arguments":
        """The same arguments for another model: of another config, and of these model plugins (one, or none)."""
        by_kind = {**self.plugins.by_kind, "model": plugins}
        return Arguments(config, RunPlugins(self.plugins.registry, by_kind), self.training_args)

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        tokenizer = self._model.load_tokenizer()
        self.notes = set_chat_template(tokenizer, self.config.data.template)
        return tokenizer

    @cached_property
    def _model(self) -> "RunModel":
        from swiftplug.runs.model import RunModel  # a run that only scores candidates should not wait for torch

        return RunModel(self)

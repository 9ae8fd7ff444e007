"""What a run hands to its plugins as `args`: its arguments, and the model that it names."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from swiftplug.config.schema import ModelOptions, RunConfig
from swiftplug.errors import UserError
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.model_arch import attach_model_meta
from swiftplug.plugin.registry import LoadedPlugin, PluginChoice
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.runs.folder import MARKER, Marker
from swiftplug.runs.model import add_padding_token, is_adapter_run, load_adapter, load_tokenizer, load_weights
from swiftplug.runs.plugins import RunPlugins


class Arguments(RunArguments):
    """The arguments of a run; see `swiftplug.plugin.RunArguments` for what plugins use of them.

    Attributes:
        plugins: The run's plugins.
        notes: What the user should know about the tokenizer, once it is loaded.
    """

    def __init__(self, config: RunConfig, plugins: RunPlugins, training_args: TrainingArguments | None = None) -> None:
        self.config = config
        self.plugins = plugins
        self.training_args = training_args
        self.notes: list[str] = []
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._built: torch.nn.Module | None = None  # by a model plugin, together with its tokenizer

    @property
    def autocast_dtype(self) -> torch.dtype:
        """The type that a training run computes in; float32 where there is no autocast."""
        training = self.training_args
        return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        if self._tokenizer is None:
            self._tokenizer = self._named_model().load_own_tokenizer()
            self.notes = set_chat_template(self._tokenizer, self.config.data.template)
        return self._tokenizer

    def load_model(self, dtype: torch.dtype | None = None) -> torch.nn.Module:
        model = self._named_model().load_own_model(dtype)
        if self._adapter is not None:
            model = load_adapter(model, self._adapter, self.plugins.registry)
        return model.eval()

    def export_model(self, folder: str | Path) -> str:
        name = self._named_model().checkpoint_name
        if self._adapter is None and name is not None and not is_adapter_run(name):
            return name
        model: Any = self.load_model()
        if isinstance(model, PeftModel):
            raise UserError("model: its adapter cannot be merged into the weights, so the model cannot be exported")
        model.save_pretrained(folder)
        self.load_tokenizer().save_pretrained(folder)
        return str(folder)

    @property
    def checkpoint_name(self) -> str | None:
        """The folder or hub id of the model that the config names; None for one that a plugin builds."""
        plugin = self.plugins.model
        if plugin is None:
            return str(self.config.model.name)
        return plugin.bound if isinstance(plugin.bound, str) else None

    def load_own_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that the config names, with a padding token."""
        name = self.checkpoint_name
        if name is not None:
            return load_tokenizer(name, self.config.model_options)
        plugin: Any = self.plugins.model
        self._built, tokenizer = self._build(plugin)
        return add_padding_token(tokenizer, plugin.found.name)

    def load_own_model(self, dtype: torch.dtype | None) -> torch.nn.Module:
        """The model that the config names, without the adapter that `--adapter` adds."""
        name = self.checkpoint_name
        if name is None:
            model, self._built = self._built, None
            return model if model is not None else self._build(self.plugins.model)[0]
        if is_adapter_run(name):
            base = self._base_of(name).load_own_model(dtype)
            return load_adapter(base, name, self.plugins.registry)
        compute_dtype = self.autocast_dtype if self.training_args else dtype or torch.float32
        return load_weights(name, self.config.model_options, dtype, compute_dtype)

    @property
    def _adapter(self) -> str | None:
        return getattr(self.config, "adapter", None)

    def _named_model(self) -> "Arguments":
        """These arguments where the config names a model, else those of the base model of its adapter."""
        if self.config.model is not None:
            return self
        if self._adapter is None:
            raise UserError("no model; name a folder, a hub id or a model plugin with --model or the key 'model'")
        return self._base_of(self._adapter)

    def _base_of(self, folder: str) -> "Arguments":
        """The arguments with which the base model of an adapter is loaded as the run had it that left the adapter."""
        marker = Marker.read(folder)
        if marker is None:
            raise UserError(f"{folder}: has no {MARKER}, so its base model is unknown; name it with --model")
        choice, registry = PluginChoice.model_validate(marker.base_model), self.plugins.registry
        is_plugin = registry.has("model", choice.name)
        plugins = [registry.resolve("model", choice, f"{folder}/{MARKER}")] if is_plugin else []
        # Code that came with a model runs where this run allows it, whatever the folder says.
        trusted = {**marker.model_options, "trust_remote_code": self.config.model_options.trust_remote_code}
        options = ModelOptions.model_validate(trusted)
        config = self.config.model_copy(update={"model": choice, "model_options": options, "seed": marker.seed})
        return Arguments(config, RunPlugins(registry, {"model": plugins}), self.training_args)

    def _build(self, plugin: LoadedPlugin | None) -> tuple[torch.nn.Module, Any]:
        """Call the model plugin; a resumed run must get the weights that an unbroken one had, so a seed is set."""
        assert plugin is not None
        set_seed(self.config.seed)
        pair = plugin.bound(self)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"{plugin.found} returned a {type(pair).__name__}; expected a pair (model, tokenizer)")
        attach_model_meta(pair[0])
        return pair

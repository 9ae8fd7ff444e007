"""What a run passes to its plugins as `args`: its config, and its model and tokenizer."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftplug.config.resume import CONFIG
from swiftplug.config.schema import ModelOptions, RunConfig
from swiftplug.errors import ContractError, UserError
from swiftplug.plugin import Labels
from swiftplug.plugin.arguments import RunArguments
from swiftplug.plugin.registry import PluginChoice
from swiftplug.plugin.tokenizer import set_chat_template
from swiftplug.runs.folder import KEPT_BASE, MARKER, Head, Marker, absolute_name, is_adapter_run, load_tuner
from swiftplug.runs.plugins import RunPlugins

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, TrainingArguments

    from swiftplug.plugin.engine import Chat


class Arguments(RunArguments):
    """The arguments of a run; see `swiftplug.plugin.RunArguments` for what plugins use of them.

    A run that only scores candidates should not wait for torch: what needs it is imported in the methods.

    Args:
        config: The config of the run.
        plugins: Its plugins.
        training_args: Those of a training run.
        tokenizer_only: Whether no model will be loaded, so that none is checked.

    Attributes:
        plugins: The run's plugins.
        notes: What the user should know about the tokenizer, once it is loaded.
        tokenizer: The tokenizer, once it is loaded.
        kept_base: The folder of a copy of the config's model, to use in its place.
    """

    def __init__(
        self,
        config: RunConfig,
        plugins: RunPlugins,
        training_args: "TrainingArguments | None" = None,
        *,
        tokenizer_only: bool = False,
    ) -> None:
        self.config = config
        self.plugins = plugins
        self.training_args = training_args
        self.task: Any = next((plugin.bound for plugin in plugins.of("task")), None)
        if self.task is not None and self.task.num_labels is not None:
            self.labels = Labels.unnamed(self.task.num_labels)
        self._tokenizer_only = tokenizer_only
        self.kept_base: str | None = None
        self.notes: list[str] = []
        self._adapter: str | None = getattr(config, "adapter", None)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self._built: torch.nn.Module | None = None  # by a model plugin, together with its tokenizer
        self._bases: dict[str, Arguments] = {}  # of adapters, by their folders
        self._adapted: Marker | None = None  # of the adapter whose base model this is for

    def check_writes(self) -> None:
        """Refuse, where text is needed, the model of a run whose task left it another head than a language model's.

        Raises:
            UserError: It is of such a run.
        """
        place = self._adapter or self._checkpoint
        marker = Marker.read(place) if place is not None else None
        if marker is None or marker.task is None or marker.head is None:
            return
        use = f"swiftplug predict {place} DATASET"
        if marker.head.kind == "token" or len(marker.head.labels.names) == 1:
            use = f"swiftplug sample --{'orm' if marker.head.kind == 'sequence' else 'prm'} {place}"
        task = marker.task["name"].removeprefix("swiftplug:")
        raise UserError(f"model: {place} is of task {task}, so it writes no text; what it is for: {use}")

    def check_plugins(self) -> None:
        """Let each plugin that has a `check_run(args)` refuse a run that it cannot act in."""
        for plugin in self.plugins.all():
            if check := getattr(plugin.bound, "check_run", None):
                try:
                    check(self)
                except ContractError as error:
                    raise UserError(f"{plugin.found} {error}") from None

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        if self.tokenizer is None:
            tokenizer = self._load_tokenizer()
            self.notes += set_chat_template(tokenizer, self.config.data.template)
            self.tokenizer = tokenizer
        return self.tokenizer

    def load_chat(self, model: "torch.nn.Module | None" = None) -> "Chat":
        from swiftplug.data.chat.generation import GenerationChat

        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        end_ids = configured if isinstance(configured, list) else [] if configured is None else [configured]
        chat = GenerationChat(self.load_tokenizer(), end_ids)
        note = (
            f"the chat template ends an answer with the text {chat.stop_text!r}, which is no single token: generation "
            "stops where it appears; other programs need it as a stop string"
        )
        if chat.stop_text and note not in self.notes:
            self.notes.append(note)
        return chat

    def load_model(
        self, dtype: "torch.dtype | None" = None, *, merge: bool = True, dequantize: bool = False
    ) -> "torch.nn.Module":
        """Load the run's model; see `RunArguments.load_model`.

        Args:
            dtype: The data type of the weights; None keeps that of the checkpoint.
            merge: Whether the run's own adapter is merged into the weights where it can be.
            dequantize: Whether its base model gets plain weights if it was quantized.

        Raises:
            UserError: The run names no model, or it cannot be loaded.
        """
        import torch
        from transformers import set_seed

        from swiftplug.runs.model import autocast_dtype, load_adapter, load_weights, with_head

        registry = self.plugins.registry
        name, head = self._checkpoint, self.head
        if head is not None:
            pad_token_id = self.load_tokenizer().pad_token_id
            set_seed(self.config.seed)
        if self.config.model is None:
            model = self.base_of(self._adapter).load_model(dtype)
        elif name is None:
            model = self._built if self._built is not None else self._build()[0]
            self._built = None
        elif is_adapter_run(name):
            base: Any = self.base_of(name).load_model(dtype)
            if dequantize and getattr(base, "is_quantized", False):
                base.dequantize(torch.float32)
            model = load_adapter(base, name, registry, dtype, merge=merge)
        else:
            compute_dtype = autocast_dtype(self.training_args) if self.training_args else dtype or torch.float32
            model = load_weights(name, self.config.model_options, dtype, compute_dtype, head)
        if self._adapter is not None:
            model = load_adapter(model, self._adapter, registry, dtype, merge=merge)
        if head is not None:
            trusted = self.config.model_options.trust_remote_code
            model = with_head(model, head, pad_token_id, trust_remote_code=trusted)
        return model.eval()

    @property
    def head(self) -> Head | None:
        """The head of the run's model; None if it is that of a language model.

        A training run's is known when the data is read.
        """
        if self._adapted is not None:
            return self._adapted.head
        if self.task is not None:
            assert self.task.head == "language" or self.labels is not None
            return None if self.labels is None else Head(self.task.head, self.labels)
        place = self._adapter or self._checkpoint
        marker = Marker.read(place) if place is not None else None
        return marker.head if marker is not None else None

    def export_model(self, folder: str | Path) -> str:
        from peft import PeftModel

        name = self._checkpoint
        if name is not None and self._adapter is None and not is_adapter_run(name):
            return name
        model: Any = self.load_model()
        if isinstance(model, PeftModel):
            raise UserError(
                "model: its adapter cannot be merged into the weights (they are quantized, or PEFT cannot merge "
                "adapters of its kind, such as learned prompts), so it cannot be exported; use --engine transformers"
            )
        model.save_pretrained(folder)
        self.load_tokenizer().save_pretrained(folder)
        return str(folder)

    @cached_property
    def continued(self) -> str | None:
        """The run whose adapter a training run goes on with, as tuner and options are the same; None for a new one."""
        name, tuner = self._checkpoint, self.plugins.one("tuner")
        marker = Marker.read(name) if name is not None and is_adapter_run(name) else None
        chosen = {"name": tuner.found.qualified_name, "options": json.loads(json.dumps(tuner.options, default=str))}
        return name if marker is not None and (marker.tuner, marker.head) == (chosen, self.head) else None

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads, as far as that is known before it is loaded."""
        from swiftplug.runs.model import load_config

        name = self._checkpoint
        if self.config.model is None or (name is not None and is_adapter_run(name)):
            return self.base_of(name or self._adapter).context
        config = (
            load_config(name, self.config.model_options) if name is not None else getattr(self._built, "config", None)
        )
        return getattr(config and config.get_text_config(), "max_position_embeddings", None)

    @property
    def base(self) -> "Arguments":
        """The arguments for the model that the tuner of a training run gets."""
        return self if self.continued is None else self.base_of(self.continued)

    @property
    def base_folder(self) -> str | None:
        """The folder or hub id of that model; None if a run whose tuner saves less has to keep a copy of it."""
        name = self.base._checkpoint
        is_copy = name is not None and Path(name).name == KEPT_BASE and (Path(name).parent / CONFIG).is_file()
        return None if name is None or is_copy or is_adapter_run(name) else absolute_name(name)

    def explain_model(self) -> Iterator[str]:
        """What a training run does with the adapter and with the head that its model has.

        Raises:
            UserError: The adapter can be neither merged nor trained further, a plugin or the base model is missing, or
                Transformers has no such model with the task's head.
        """
        from peft import PeftConfig

        name, tuner = self._checkpoint, self.plugins.one("tuner")
        marker = Marker.read(name) if name is not None and is_adapter_run(name) else None
        yield from self._explain_head()
        if name is None or marker is None:
            return
        load_tuner(name, self.plugins.registry)
        base = self.base_of(name)
        has_config = (Path(name).expanduser() / "adapter_config.json").is_file()
        if has_config and PeftConfig.from_pretrained(str(Path(name).expanduser())).is_prompt_learning:
            raise UserError(f"model: {name} holds a learned prompt, which can be neither merged nor trained further")
        if self.continued:
            yield f"model: the adapter of {name} is trained further (tuner and options are the same)"
        elif base.config.model_options.quantization:
            raise UserError(
                f"model: the adapter of {name} cannot be merged into a quantized model; to train it further, use its "
                f"tuner and options: {json.dumps(marker.tuner)}"
            )
        else:
            kept = "" if tuner.bound.saves_whole_model else f" and kept in {self.config.output_dir}/{KEPT_BASE}"
            yield f"model: the adapter of {name} is merged into its base model{kept}, and training starts from there"

    def _explain_head(self) -> Iterator[str]:
        from swiftplug.runs.model import check_head, keeps_head, load_config, own_labels

        name, head, own = self._checkpoint, self.head, None
        if head is None:
            return
        if name is not None and is_adapter_run(name):
            marker = Marker.read(name)
            before = marker.head if marker is not None else None
            own = before.labels if before is not None and before.kind == head.kind else None
        elif name is not None:
            config = load_config(name, self.config.model_options)
            check_head(config, head.kind, f"model: {name}")
            own = own_labels(config, head.kind)
        task, count = self.plugins.one("task").found.name, len(head.labels.names)
        if keeps_head(own, head.labels):
            yield f"model: its head is trained further (task {task}, labels: {count})"
        else:
            found = "" if own is None else f"; its own has the labels {', '.join(own.names)}"
            yield f"model: its head is new (task {task}, labels: {count}){found}"

    def _load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with a padding token and its own chat template."""
        from swiftplug.runs.tokenizer import load_tokenizer, with_padding_token

        if self.config.model is None:
            return self.base_of(self._adapter)._load_tokenizer()
        name = self._checkpoint
        if name is not None:
            if not self._tokenizer_only and not is_adapter_run(name):
                from swiftplug.runs.model import load_config, own_labels

                config = load_config(name, self.config.model_options)
                writes = self.head is None if self.task is None else self.task.head == "language"
                if writes and (own_labels(config, "sequence") or own_labels(config, "token")):
                    [architecture] = config.architectures or []
                    raise UserError(
                        f"model: {name} is a {architecture}, whose head gives no tokens; expected a language model"
                        + (", which this task needs" if self.task is not None else "")
                    )
            return load_tokenizer(name, self.config.model_options)
        self._built, tokenizer = self._build()
        return with_padding_token(tokenizer, self.config.model.name)

    @property
    def _checkpoint(self) -> str | None:
        """The folder or hub id that the config's model is; None if there is no model, or a plugin builds it."""
        plugin = self.plugins.model
        if self.kept_base is not None:
            return self.kept_base
        if plugin is None:
            return self.config.model and str(self.config.model.name)
        return plugin.bound if isinstance(plugin.bound, str) else None

    def base_of(self, folder: str | None) -> "Arguments":
        """The arguments for the base model of an adapter, as it was loaded in the run that trained the adapter."""
        if folder is None:
            raise UserError("no model; name a folder, a hub id or a model plugin with --model or the key 'model'")
        if folder in self._bases:
            return self._bases[folder]
        marker = Marker.read(folder)
        if marker is None:
            raise UserError(f"{folder}: has no {MARKER}, so its base model is unknown; name it with --model")
        registry = self.plugins.registry
        choice = PluginChoice.model_validate(marker.base_choice(folder))
        is_plugin = registry.has("model", choice.name)
        plugins = [registry.resolve("model", choice, f"{folder}/{MARKER}")] if is_plugin else []
        # What this run's config gives comes first: above all, the permission for custom model code is its alone.
        given = self.config.model_options.model_dump(exclude_none=True)
        options = ModelOptions.model_validate({**marker.model_options, **given})
        changed = {"model": choice, "model_options": options, "seed": marker.seed}
        if self._adapter is not None:
            changed["adapter"] = None
        used = RunPlugins(registry, {**self.plugins.by_kind, "model": plugins})
        base = self._bases[folder] = Arguments(self.config.model_copy(update=changed), used, self.training_args)
        base._adapted = marker
        return base

    def _build(self) -> "tuple[torch.nn.Module, Any]":
        """What the model plugin returns; it is seeded, so that a resumed run builds the same weights."""
        from transformers import set_seed
        from transformers.utils import logging

        from swiftplug.plugin.model_arch import attach_model_meta

        plugin: Any = self.plugins.model
        logging.disable_progress_bar()  # of writing weights
        set_seed(self.config.seed)
        pair = plugin.bound(self)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"{plugin.found} returned a {type(pair).__name__}; expected a pair (model, tokenizer)")
        attach_model_meta(pair[0])
        return pair

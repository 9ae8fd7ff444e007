"""What plugins get as `args`: the run's config and, in a training run, its `TrainingArguments`, as attributes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from swiftplug.plugin.engine import Chat
    from swiftplug.plugin.task import Labels, Task


class RunArguments:
    """The arguments of a run, as callbacks, optimizers, tuners, models and engines get them.

    Every key of the config is an attribute (`args.seed`, `args.output_dir`, `args.model.name`), and in a training run
    so is every field of `transformers.TrainingArguments` (`args.learning_rate`).

    Attributes:
        config: The whole config, as `config.yaml` in the run's folder has it.
        training_args: The `TrainingArguments` of a training run; None in a sampling run.
        task: The task of a training run; None in a sampling run.
        labels: What the numbers of the model's head stand for, if it is not that of a language model: given by the task
            (`num_labels`), or known when the data is read.
        eval_names: What an evaluation gives, without `eval_`: `loss`, what the task logs, and what the metrics
            return; None if that is not known before the first one.
        num_training_steps: The optimizer steps of the whole run; known when the optimizer is made, 0 before.

    Example:
        >>> class MyEngine(Engine):
        ...     def open(self, args, sampling):
        ...         self.tokenizer = args.load_tokenizer()
        ...         self.model = args.load_model(dtype=torch.bfloat16).to("cuda")
    """

    config: Any
    training_args: Any = None
    task: "Task | None" = None
    labels: "Labels | None" = None
    eval_names: frozenset[str] | None = None
    num_training_steps: int = 0

    def __getattr__(self, name: str) -> Any:
        # `config` and `training_args` are missing only while the object is being copied.
        if name.startswith("__") or name in ("config", "training_args"):
            raise AttributeError(name)
        source = self.config if name in type(self.config).model_fields or not self.training_args else self.training_args
        return getattr(source, name)

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer of the run's model; the same object at every call.

        Returns:
            The tokenizer, with a padding token and with the run's chat template.

        Raises:
            UserError: The run names no model, or the model has no usable tokenizer.
        """
        raise NotImplementedError

    def load_chat(self, model: "torch.nn.Module | None" = None) -> "Chat":
        """How the run's tokenizer and chat template write prompts and answers; see `swiftplug.plugin.Chat`.

        Args:
            model: The run's model, if its generation config may name further tokens that end an answer.
        """
        raise NotImplementedError

    def load_model(self, dtype: "torch.dtype | None" = None) -> "torch.nn.Module":
        """Load the run's model: from a folder, the hub, a model plugin or an earlier run.

        An adapter is loaded through the tuner that trained it, and merged into the weights where it can be. A model
        for a task whose head is not that of a language model takes over all but the head of one that has another head
        or other labels.

        Args:
            dtype: The data type of the weights; None keeps that of the checkpoint.

        Returns:
            A new model in evaluation mode, on the CPU, or on the device on which it was quantized.

        Raises:
            UserError: The run names no model, or it cannot be loaded.
        """
        raise NotImplementedError

    def export_model(self, folder: str | Path) -> str:
        """Return a folder or hub id from which plain Transformers, or another library, can load the run's model.

        Args:
            folder: An empty folder. A model that is not a complete checkpoint (it has an adapter, or a plugin builds
                it) is written there, with its tokenizer.

        Returns:
            The folder or hub id.

        Raises:
            UserError: The run names no model, or its adapter cannot be merged.
        """
        raise NotImplementedError

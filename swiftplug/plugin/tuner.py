"""The contract of tuners: which parameters are trained, and how they are saved and loaded."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from swiftplug.plugin.arguments import RunArguments


class Tuner:
    """Base class of tuners: prepares a model for training, and saves and loads what is trained.

    The options of the plugin are the keyword-only parameters of `prepare_model`.

    Attributes:
        saves_whole_model: Whether `save_pretrained` writes a complete Transformers model, which needs no base model.

    Example:
        >>> class LastLayer(Tuner):
        ...     @staticmethod
        ...     def prepare_model(args, model, *, layer: str = "lm_head"):
        ...         for name, parameter in model.named_parameters():
        ...             parameter.requires_grad_(name.startswith(layer))
        ...         return model
    """

    saves_whole_model: bool = False

    @staticmethod
    def prepare_model(args: "RunArguments", model: "torch.nn.Module") -> "torch.nn.Module":
        """Wrap or change a newly loaded base model for training.

        Args:
            args: The run's arguments; see `swiftplug.plugin.RunArguments`.
            model: The base model.

        Returns:
            The model to train.
        """
        raise NotImplementedError

    @staticmethod
    def save_pretrained(
        model: "torch.nn.Module",
        save_directory: str,
        state_dict: "dict[str, torch.Tensor] | None" = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write what was trained into a folder. Called at every checkpoint and at the end.

        Args:
            model: The model that `prepare_model` or `from_pretrained` returned.
            save_directory: An existing folder.
            state_dict: The weights to write, if they had to be gathered from several processes.
            safe_serialization: Whether to write safetensors.
            **kwargs: Arguments that later versions may add.
        """
        raise NotImplementedError

    @staticmethod
    def from_pretrained(model: "torch.nn.Module", model_id: str, **kwargs: Any) -> "torch.nn.Module":
        """Apply what `save_pretrained` wrote to a newly loaded base model. Called at every resume and for sampling.

        Args:
            model: The base model.
            model_id: The folder that `save_pretrained` wrote.
            **kwargs: `is_trainable=True` if training continues.

        Returns:
            The model, wrapped as `prepare_model` would wrap it.
        """
        raise NotImplementedError

    @staticmethod
    def disabled(model: "torch.nn.Module") -> "AbstractContextManager[Any] | None":
        """A context in which the model computes what its base model does; None if there is no such context.

        A preference objective's reference model needs no memory of its own where there is one.

        Args:
            model: The model that `prepare_model` or `from_pretrained` returned.
        """
        return None

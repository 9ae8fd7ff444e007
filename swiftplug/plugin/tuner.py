"""The contract of tuners: which parameters train, and how they are saved and loaded."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Tuner:
    """Wraps a model for training and knows how to save and load what it trains.

    The options of a tuner are the keyword-only parameters of its `prepare_model`.
    """

    @staticmethod
    def prepare_model(args: Any, model: "torch.nn.Module") -> "torch.nn.Module":
        """Wrap or change a freshly loaded base model for training.

        Args:
            args: The run's arguments: every field of the config and of `TrainingArguments`, by attribute.
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
        """Write what the tuner trained into a folder; called at every checkpoint and at the end.

        Args:
            model: The model that `prepare_model` or `from_pretrained` returned.
            save_directory: An existing folder.
            state_dict: The weights to write, where they had to be gathered from several processes.
            safe_serialization: Whether to write safetensors.
            **kwargs: Whatever later versions add.
        """
        raise NotImplementedError

    @staticmethod
    def from_pretrained(model: "torch.nn.Module", model_id: str, **kwargs: Any) -> "torch.nn.Module":
        """Put what `save_pretrained` wrote onto a freshly loaded base model; called at every resume and at sampling.

        Args:
            model: The base model.
            model_id: The folder that `save_pretrained` wrote.
            **kwargs: `is_trainable=True` when training goes on.

        Returns:
            The model, wrapped as `prepare_model` would have.
        """
        raise NotImplementedError

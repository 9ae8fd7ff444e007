"""What the plugins of a sampling run get as `args`."""

from typing import TYPE_CHECKING, Any

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice

if TYPE_CHECKING:
    import torch

    from swiftplug.runs.model import ModelRequest


class SampleArguments:
    """What engines and model plugins get as `args`: every field of the config, by attribute.

    Attributes:
        config: The whole config.
        registry: Knows every plugin.
        model_plugin: The plugin that the config's model names; None for a folder or hub id.
    """

    def __init__(self, config: SampleConfig, registry: Registry, model_plugin: LoadedPlugin | None) -> None:
        self.config = config
        self.registry = registry
        self.model_plugin = model_plugin

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.config, name)

    def model_request(self, dtype: "torch.dtype", compute_dtype: "torch.dtype") -> "ModelRequest":
        """What to ask `swiftplug.runs.model` for, to load the run's model here.

        Args:
            dtype: Of its weights.
            compute_dtype: Of the arithmetic on weights that are quantized.

        Raises:
            UserError: The config names no model.
        """
        from swiftplug.runs.model import ModelRequest

        if self.config.model is None and self.config.adapter is None:
            raise UserError("no model; name a folder, a hub id or a model plugin with --model or the key 'model'")

        def arguments(choice: PluginChoice, seed: int) -> SampleArguments:
            return SampleArguments(
                self.config.model_copy(update={"model": choice, "seed": seed}), self.registry, self.model_plugin
            )

        return ModelRequest(
            name=self.config.model.name if self.config.model else "",
            plugin=self.model_plugin,
            registry=self.registry,
            options=self.config.model_options,
            seed=self.config.seed,
            arguments=arguments,
            dtype=dtype,
            compute_dtype=compute_dtype,
        )

"""Whether what a config calls its model is a plugin."""

from swiftplug.config.schema import RunConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice


def find_model_plugin(config: RunConfig, model: PluginChoice | None, registry: Registry) -> LoadedPlugin | None:
    """The plugin that a config's model names; None for a folder, a hub id, or no model.

    Args:
        config: The run's config, for messages.
        model: Its model.
        registry: Knows the plugins.

    Raises:
        UserError: The plugin is broken, or what is none was given options.
    """
    if model is None:
        return None
    if registry.has("model", model.name):
        return registry.resolve("model", model, config.where("model"))
    if model.options:
        raise UserError(f"{config.where('model')}: {model.name!r} is no plugin; only a plugin takes options")
    return None

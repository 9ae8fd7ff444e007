"""Finds, imports and checks all plugins of a run before anything slow happens."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from swiftplug.config.schema import DRAW_KEYS, RunConfig, TrainConfig
from swiftplug.data.read.sources import HUB_ID
from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS, LoadedPlugin, PluginChoice, Registry
from swiftplug.plugin.task import TASK_KINDS

_REWARD_MODEL = "swiftplug:reward_model"
_KIND_OF_KEY = {kind.key: kind.name for kind in KINDS.values() if kind.key != "dataset"}


@dataclass(frozen=True)
class RunPlugins:
    """The plugins that a run uses.

    Attributes:
        registry: Where they were found.
        by_kind: For each kind that the run has, its plugins, in the order of the config.
    """

    registry: Registry
    by_kind: Mapping[str, Sequence[LoadedPlugin]] = field(default_factory=dict)

    def one(self, kind: str) -> LoadedPlugin:
        """The plugin of a kind that a run has exactly one of."""
        (plugin,) = self.by_kind[kind]
        return plugin

    def of(self, kind: str) -> Sequence[LoadedPlugin]:
        """The plugins of a kind."""
        return self.by_kind.get(kind, ())

    @property
    def model(self) -> LoadedPlugin | None:
        """The plugin that the config's model names; None for a folder or hub id."""
        return next(iter(self.of("model")), None)

    def all(self) -> list[LoadedPlugin]:
        """Every plugin of the run."""
        return [plugin for plugins in self.by_kind.values() for plugin in plugins]


def free_options(plugins: RunPlugins) -> dict[str, Collection[str]]:
    """By plugin (`engine:openai`), the options that may change when a run is resumed."""
    return {
        f"{KINDS[kind].key}:{plugin.found.name}": getattr(plugin.bound, "may_change", ())
        for kind in plugins.by_kind
        for plugin in plugins.of(kind)
    }


def check_plugin_names(config: RunConfig) -> None:
    """Report a wrong plugin name immediately: this imports no plugin, and neither torch nor Transformers.

    Raises:
        UserError: A name that the config gives is that of no plugin or of several, or that of one that is not allowed.
    """
    registry = _discover(config)
    for kind, choices, path in _named(config, registry):
        for choice in choices:
            registry.check_name(kind, choice.name, config.where(*path))


def resolve_plugins(config: RunConfig, kinds: Collection[str] = KINDS) -> RunPlugins:
    """Find, import and check the plugins that a config names; datasets are resolved when they are read.

    Args:
        config: The config.
        kinds: The kinds that are needed; of plugins of others, only the names are checked.

    Raises:
        UserError: One is unknown, ambiguous, broken, of the wrong form, or does not take its options.
    """
    registry = _discover(config)
    if isinstance(config, TrainConfig):
        where_task = partial(config.where, "task")
        task = registry.resolve("task", config.task, where_task(), where_task)
        kinds = set(kinds) - _idle_kinds(config, task, registry)
    by_kind: dict[str, list[LoadedPlugin]] = {
        kind: [] for key in type(config).model_fields if (kind := _KIND_OF_KEY.get(key, "")) in kinds
    }
    if "callback" in by_kind:  # `extra_callbacks` of a plugin file run without being named in the config
        by_kind["callback"] += registry.always_on_callbacks
    for kind, choices, path in _named(config, registry):
        where, where_option = config.where(*path), partial(config.where, *path)
        if kind == "task":
            by_kind[kind].append(task)
        elif kind not in kinds:
            for choice in choices:
                registry.check_name(kind, choice.name, where)
        elif len(choices) == 1:
            by_kind[kind].append(registry.resolve(kind, choices[0], where, where_option))
        else:
            by_kind[kind] += _resolve_combined(registry, choices, where, where_option)
    return RunPlugins(registry, by_kind)


def _idle_kinds(config: TrainConfig, task: LoadedPlugin, registry: Registry) -> set[str]:
    """The kinds of plugin that do not act in a task; raises a UserError if the config names what acts in others only.

    What an engine draws with acts where an engine does.
    """
    idle = set(TASK_KINDS - task.bound.kinds)
    for key, declared in type(config).model_fields.items():
        kind = _KIND_OF_KEY.get(key, "engine" if key in DRAW_KEYS else "")
        if kind in idle and getattr(config, key) != declared.default:
            usable = [found for found in registry.found("task") if registry.check(found).status == "fits"]
            tasks = [found.name for found in usable if kind in found.load().kinds]
            plugin = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind.replace('_', ' ')} "
            what = plugin if key in _KIND_OF_KEY else ""
            raise UserError(
                f"{config.where(key)}: {what}does not act in task {task.found.name}, but in {', '.join(tasks)}"
            )
    return idle


def _discover(config: RunConfig) -> Registry:
    return Registry.discover(files=config.plugins.files, allow=config.plugins.allow)


def _named(config: RunConfig, registry: Registry) -> Iterator[tuple[str, list[PluginChoice], tuple[str | int, ...]]]:
    """Each place where a config names plugins: their kind, the plugins (several for `a+b`), and the path of the key."""
    for key in type(config).model_fields:
        kind, value = _KIND_OF_KEY.get(key), getattr(config, key)
        if kind is None or value is None:
            continue
        if isinstance(value, list):
            for index, choice in enumerate(value):
                yield kind, [_scorer(kind, choice, registry)], (key, index)
        elif kind == "loss_scale":
            choices = [PluginChoice(name=name, options=value.options) for name in value.name.split("+")]
            yield kind, choices, (key,)
        elif kind != "model" or registry.has("model", value.name):
            yield kind, [value], (key,)
        elif value.options:
            raise UserError(f"{config.where('model')}: {value.name!r} is not a plugin; only a plugin takes options")


def _scorer(kind: str, choice: PluginChoice, registry: Registry) -> PluginChoice:
    """A plugin of a list; a scorer that is a checkpoint (folder, or hub id as for a dataset) becomes `reward_model`."""
    name = choice.name
    if kind in ("orm", "prm") and not registry.has(kind, name):
        if Path(name).expanduser().is_dir():
            return PluginChoice(name=_REWARD_MODEL, options={"model": name, **choice.options})
        if (hub := HUB_ID.fullmatch(name)) and not Path(name).exists():
            pinned = {"model": hub[1]} | ({"revision": hub[2]} if hub[2] else {})
            return PluginChoice(name=_REWARD_MODEL, options={**pinned, **choice.options})
    return PluginChoice(name=name, options=choice.options)


def _resolve_combined(
    registry: Registry, choices: Sequence[PluginChoice], where: str, where_option: Callable[[str], str]
) -> list[LoadedPlugin]:
    """The loss scales that a name such as `last_round+keywords` combines; options go to the one that accepts them.

    Raises:
        UserError: One is unknown, or not exactly one accepts the options.
    """
    if not choices[0].options:
        return [registry.resolve("loss_scale", choice, where) for choice in choices]
    takers, refusals = {}, []
    for index, choice in enumerate(choices):
        try:
            takers[index] = registry.resolve("loss_scale", choice, where, where_option)
        except UserError as refusal:
            refusals.append(refusal)
    if not takers:
        raise refusals[-1]
    if len(takers) > 1:
        names = "+".join(choice.name for choice in choices)
        raise UserError(f"{where}: more than one of {names!r} takes these options; give them to one alone")
    return [
        takers.get(index) or registry.resolve("loss_scale", PluginChoice(name=choice.name), where)
        for index, choice in enumerate(choices)
    ]

"""All plugins of a sampling run, resolved and checked before anything slow."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swiftplug.config.schema import SampleConfig, ScorerChoice
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Engine
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.runs.model_plugin import find_model_plugin
from swiftplug.sampling.scoring import Scorer

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REWARD_MODEL = "swiftplug:reward_model"


@dataclass(frozen=True)
class SamplePlugins:
    """The plugins that a sampling run uses.

    Attributes:
        registry: What they were found in.
        engine: What samples.
        tools: How tools are written.
        scorers: The ORMs and then the PRMs, as the config names them.
        model: The model plugin, or None for a folder, a hub id or a server's model.
    """

    registry: Registry
    engine: LoadedPlugin
    tools: LoadedPlugin
    scorers: list[Scorer]
    model: LoadedPlugin | None

    @property
    def sampler(self) -> Engine:
        """The engine, ready to be opened."""
        bound: Engine = self.engine.bound
        return bound

    def all(self) -> list[LoadedPlugin]:
        """Every plugin of the run."""
        model = [self.model] if self.model else []
        return [*model, self.engine, self.tools, *(scorer.plugin for scorer in self.scorers)]


class _Named(NamedTuple):
    kind: str
    choice: PluginChoice
    where: str


def check_sample_names(config: SampleConfig) -> None:
    """Refuse an unknown plugin at once: this imports no plugin, and neither torch nor Transformers.

    Raises:
        UserError: No plugin has a name that the config gives, or more than one has.
    """
    registry = Registry.discover(files=config.plugins.files, allow=config.plugins.allow)
    for kind, choice, where in _named(config, registry):
        if not registry.has(kind, choice.name):
            registry.resolve(kind, PluginChoice(name=choice.name), where)


def resolve_sample_plugins(config: SampleConfig) -> SamplePlugins:
    """Find, import and check every plugin that a config names.

    Raises:
        UserError: One is unknown, ambiguous, broken, of the wrong form, or given options that it does not take; or two
            scorers have one name.
    """
    registry = Registry.discover(files=config.plugins.files, allow=config.plugins.allow)
    model = find_model_plugin(config, config.model, registry)
    resolved = [
        (kind, choice, registry.resolve(kind, choice, where)) for kind, choice, where in _named(config, registry)
    ]
    one = {kind: plugin for kind, _, plugin in resolved}
    written = [*config.orm, *config.prm]
    scorers = [
        Scorer(it.name, kind, it.weight, plugin) for it, (kind, _, plugin) in zip(written, resolved[2:], strict=True)
    ]
    _check_scorers(scorers)
    _check_thresholds(config, scorers)
    return SamplePlugins(registry, one["engine"], one["tools"], scorers, model)


def _named(config: SampleConfig, registry: Registry) -> Iterator[_Named]:
    """What a config names that must be a plugin, and where it does: the engine, the tools format, every scorer."""
    yield _Named("engine", config.engine, config.where("engine"))
    yield _Named("tools", config.tools, config.where("tools"))
    for kind in ("orm", "prm"):
        for index, choice in enumerate(getattr(config, kind)):
            yield _Named(kind, _as_plugin(kind, choice, registry), config.where(kind, index))


def _as_plugin(kind: str, choice: ScorerChoice, registry: Registry) -> PluginChoice:
    """A scorer that is no plugin but a checkpoint, by folder or hub id, is the model that a built-in runs."""
    name = choice.name
    is_folder = Path(name).expanduser().is_dir()
    if registry.has(kind, name) or not (is_folder or (_HUB_ID.fullmatch(name) and not Path(name).exists())):
        return PluginChoice(name=name, options=choice.options)
    return PluginChoice(name=_REWARD_MODEL, options={"model": name, **choice.options})


def _check_scorers(scorers: list[Scorer]) -> None:
    names = [scorer.name for scorer in scorers]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two scorers are called {name!r}; give one its qualified name (swiftplug:{name}), or drop it"
            )
    if scorers and not any(scorer.weight for scorer in scorers):
        raise UserError("every scorer has the weight 0, so nothing ranks the candidates; give one of them a weight")


def _check_thresholds(config: SampleConfig, scorers: list[Scorer]) -> None:
    if config.prm_threshold is not None and not config.prm:
        raise UserError(f"{config.where('prm_threshold')}: no PRM gives a reward to reach it; name one with --prm")
    if config.easy_query_threshold is not None and not any(scorer.right_from is not None for scorer in scorers):
        raise UserError(
            f"{config.where('easy_query_threshold')}: no ORM judges which candidates are right; name one with --orm"
        )

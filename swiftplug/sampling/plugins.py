"""The plugins of a sampling run, and its scorers with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from swiftplug.config.schema import SampleConfig
from swiftplug.errors import UserError
from swiftplug.plugin.engine import Engine
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.runs.plugins import RunPlugins, resolve_plugins
from swiftplug.sampling.scoring import Scorer


@dataclass(frozen=True)
class SamplePlugins(RunPlugins):
    """The plugins that a sampling run uses.

    Attributes:
        scorers: The ORMs and then the PRMs, as the config names them.
    """

    scorers: Sequence[Scorer] = ()

    @property
    def engine(self) -> LoadedPlugin:
        """What samples."""
        return self.one("engine")

    @property
    def sampler(self) -> Engine:
        """The engine, ready to be opened."""
        bound: Engine = self.engine.bound
        return bound

    @property
    def tools(self) -> LoadedPlugin:
        """How tools are written."""
        return self.one("tools")


def resolve_sample_plugins(config: SampleConfig) -> SamplePlugins:
    """Find, import and check every plugin that a config names.

    Raises:
        UserError: One is unknown, ambiguous, broken, of the wrong form, or given options that it does not take; or two
            scorers have one name.
    """
    plugins = resolve_plugins(config)
    used = zip([*config.orm, *config.prm], [*plugins.of("orm"), *plugins.of("prm")], strict=True)
    scorers = [Scorer(choice.name, plugin.found.kind, choice.weight, plugin) for choice, plugin in used]
    _check_scorers(scorers)
    _check_thresholds(config, scorers)
    return SamplePlugins(plugins.registry, plugins.by_kind, scorers)


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

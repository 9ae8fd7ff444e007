"""All plugins of a training run, resolved and checked before anything slow."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError
from swiftplug.plugin.loss import TokenLoss
from swiftplug.plugin.registry import LoadedPlugin, Registry
from swiftplug.plugin.registry.choice import PluginChoice
from swiftplug.plugin.registry.kinds import KINDS
from swiftplug.runs.model_plugin import find_model_plugin


@dataclass(frozen=True)
class RunPlugins:
    """The plugins that a training run uses.

    Attributes:
        registry: What they were found in.
        loss, optimizer, tools, tuner: One each.
        loss_scales: What `+` combined, in order.
        metrics, callbacks: Any number.
        model: The model plugin, or None for a folder or hub id.
    """

    registry: Registry
    loss: LoadedPlugin
    loss_scales: list[LoadedPlugin]
    optimizer: LoadedPlugin
    tools: LoadedPlugin
    tuner: LoadedPlugin
    metrics: list[LoadedPlugin]
    callbacks: list[LoadedPlugin]
    model: LoadedPlugin | None

    def all(self) -> list[LoadedPlugin]:
        """Every plugin of the run."""
        one_each = [self.tuner, self.loss, *self.loss_scales, self.optimizer, self.tools]
        return [*([self.model] if self.model else []), *one_each, *self.metrics, *self.callbacks]


class _Named(NamedTuple):
    kind: str
    choice: PluginChoice
    where: str


def check_names(config: TrainConfig) -> None:
    """Refuse an unknown plugin at once: this imports no plugin, and neither torch nor Transformers.

    Raises:
        UserError: No plugin has a name that the config gives, or more than one has.
    """
    registry = Registry.discover(files=config.plugins.files, allow=config.plugins.allow)
    for kind, choice, where in _named(config):
        for name in choice.name.split("+") if kind == "loss_scale" else [choice.name]:
            if not registry.has(kind, name):
                registry.resolve(kind, PluginChoice(name=name), where)


def resolve_plugins(config: TrainConfig) -> RunPlugins:
    """Find, import and check every plugin that a config names.

    Raises:
        UserError: One is unknown, ambiguous, broken, of the wrong form, or given options that it does not take.
    """
    registry = Registry.discover(files=config.plugins.files, allow=config.plugins.allow)
    model = find_model_plugin(config, config.model, registry)
    one: dict[str, LoadedPlugin] = {}
    many: dict[str, list[LoadedPlugin]] = {"metric": [], "callback": registry.active_callbacks}
    for kind, choice, where in _named(config):
        if kind in many:
            many[kind].append(registry.resolve(kind, choice, where))
        elif kind != "loss_scale":
            one[kind] = registry.resolve(kind, choice, where)
    return RunPlugins(
        registry=registry,
        loss=one["loss"],
        loss_scales=_combined(registry, config.loss_scale, config.where("loss_scale")),
        optimizer=one["optimizer"],
        tools=one["tools"],
        tuner=one["tuner"],
        metrics=many["metric"],
        callbacks=many["callback"],
        model=model,
    )


def _named(config: TrainConfig) -> Iterator[_Named]:
    """What a config names that must be a plugin, and where it does."""
    for kind in ("tuner", "loss", "loss_scale", "optimizer", "tools"):
        yield _Named(kind, getattr(config, kind), config.where(kind))
    for kind in ("metric", "callback"):
        key = KINDS[kind].key
        for index, choice in enumerate(getattr(config, key)):
            yield _Named(kind, choice, config.where(key, index))


def _combined(registry: Registry, choice: PluginChoice, where: str) -> list[LoadedPlugin]:
    """The loss scales that a name such as `last_round+keywords` combines; options go to the one that takes them.

    Raises:
        UserError: One is unknown, or of several not exactly one takes the options.
    """
    names = choice.name.split("+")
    if len(names) == 1:
        return [registry.resolve("loss_scale", choice, where)]
    scales = [registry.resolve("loss_scale", PluginChoice(name=name), where) for name in names if not choice.options]
    if scales:
        return scales
    takers = []
    for name in names:
        try:
            takers.append(registry.resolve("loss_scale", PluginChoice(name=name, options=choice.options), where))
        except UserError as error:
            refusal = error
    if not takers:
        raise refusal
    if len(takers) > 1:
        raise UserError(f"{where}: more than one of {choice.name!r} takes these options; give them to one alone")
    (taker,) = takers
    return [
        taker
        if name in (taker.found.name, taker.found.qualified_name)
        else registry.resolve("loss_scale", PluginChoice(name=name), where)
        for name in names
    ]


class LossContract:
    """What a loss plugin's signature says it can take.

    Attributes:
        takes_scale: It weighs tokens by `loss_scale`.
        takes_num_items: It divides by `num_items_in_batch`, and not by its own micro-batch.
        is_token_loss: It is a sum over tokens, and needs no whole logits.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        # A module's own signature is that of any call; its `forward` says what it takes.
        parameters = inspect.signature(getattr(function, "forward", function)).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_scale = takes_any or "loss_scale" in parameters
        self.takes_num_items = takes_any or "num_items_in_batch" in parameters
        self.is_token_loss = isinstance(function, TokenLoss) and type(function).__call__ is TokenLoss.__call__

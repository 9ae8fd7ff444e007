"""All plugins of a training run, resolved and checked before anything slow."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError
from swiftplug.plugin.choice import PluginChoice
from swiftplug.plugin.loss import TokenLoss
from swiftplug.plugin.registry import LoadedPlugin, Registry


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


def resolve_plugins(config: TrainConfig) -> RunPlugins:
    """Find, import and check every plugin that a config names.

    Raises:
        UserError: One is unknown, ambiguous, broken, of the wrong form, or given options that it does not take.
    """
    registry = Registry.discover(files=config.plugins.files, allow=config.plugins.allow)

    def one(kind: str, choice: PluginChoice) -> LoadedPlugin:
        return registry.resolve(kind, choice, where=kind)

    assert config.model is not None
    plugins = RunPlugins(
        registry=registry,
        model=one("model", config.model) if registry.has("model", config.model.name) else None,
        loss=one("loss", config.loss),
        loss_scales=resolve_loss_scales(registry, config.loss_scale),
        optimizer=one("optimizer", config.optimizer),
        tools=one("tools", config.tools),
        tuner=one("tuner", config.tuner),
        metrics=[one("metric", choice) for choice in config.metrics],
        callbacks=[*registry.active_callbacks, *(one("callback", choice) for choice in config.callbacks)],
    )
    if plugins.model is None and config.model.options:
        raise UserError(f"model: {config.model.name!r} is no plugin, and only a plugin takes options")
    return plugins


def resolve_loss_scales(registry: Registry, choice: PluginChoice) -> list[LoadedPlugin]:
    """The loss scales that a name such as `last_round+react` combines; options go to the one that takes them.

    Raises:
        UserError: One is unknown, or options are given and not exactly one of several could take them.
    """
    names = choice.name.split("+")
    if len(names) == 1 or not choice.options:
        return [
            registry.resolve("loss_scale", PluginChoice(name=name, options=choice.options), where="loss_scale")
            for name in names
        ]
    scales = []
    takers = 0
    refusal: UserError | None = None
    for name in names:
        try:
            scales.append(
                registry.resolve("loss_scale", PluginChoice(name=name, options=choice.options), where="loss_scale")
            )
            takers += 1
        except UserError as error:
            refusal = error
            scales.append(registry.resolve("loss_scale", PluginChoice(name=name), where="loss_scale"))
    if takers != 1:
        raise refusal or UserError(
            f"loss_scale: {choice.name!r}: more than one of them takes the options {choice.options}"
        )
    return scales


class LossContract:
    """What a loss plugin's signature says it can take.

    Attributes:
        takes_scale: It weighs tokens by `loss_scale`.
        takes_num_items: It divides by `num_items_in_batch`, and not by its own micro-batch.
        is_token_loss: It is a sum over tokens, and needs no whole logits.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.takes_scale = takes_any or "loss_scale" in parameters
        self.takes_num_items = takes_any or "num_items_in_batch" in parameters
        self.is_token_loss = isinstance(function, TokenLoss) and type(function).__call__ is TokenLoss.__call__

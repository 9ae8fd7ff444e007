"""The kinds of plugin. Whatever goes through all kinds reads this table."""

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of plugin.

    Attributes:
        name: The kind, as messages and `list-plugins` show it.
        group: The entry-point group in which distributions declare its plugins.
        key: The config key that chooses one, and where `--set KEY.OPTION=VALUE` gives it options.
        option: The command-line option that chooses one.
        many: Whether a run may use several at once: the key is a list and the option repeats.
        table: The module-level table that a plugin file in the style of SWIFT 3.0 defines; empty if there is none.
    """

    name: str
    group: str
    key: str
    option: str
    many: bool = False
    table: str = ""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("callback", "swiftplug.callbacks", "callbacks", "--callback", many=True, table="extra_callbacks"),
        Kind("loss", "swiftplug.losses", "loss", "--loss", table="LOSS_MAPPING"),
        Kind("loss_scale", "swiftplug.loss_scales", "loss_scale", "--loss-scale", table="loss_scale_map"),
        Kind("metric", "swiftplug.metrics", "metrics", "--metric", many=True, table="METRIC_MAPPING"),
        Kind("optimizer", "swiftplug.optimizers", "optimizer", "--optimizer", table="optimizers_map"),
        Kind("tools", "swiftplug.tools", "tools", "--tools", table="tools_prompt"),
        Kind("tuner", "swiftplug.tuners", "tuner", "--tuner", table="extra_tuners"),
        Kind("prm", "swiftplug.prms", "prm", "--prm", many=True, table="prms"),
        Kind("orm", "swiftplug.orms", "orm", "--orm", many=True, table="orms"),
        Kind("model", "swiftplug.models", "model", "--model"),
        Kind("dataset", "swiftplug.datasets", "dataset", "--dataset", many=True),
        Kind("engine", "swiftplug.engines", "engine", "--engine"),
    )
}

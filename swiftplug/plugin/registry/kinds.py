"""The kinds of plugin: for each its entry-point group, its config key and its option."""

from typing import NamedTuple


class Kind(NamedTuple):
    """One sort of plugin.

    Attributes:
        name: The kind, as errors and `list-plugins` say it.
        group: The entry-point group that distributions declare it in.
        key: The key of the config that chooses one, which is also where `--set KEY.OPTION=VALUE` gives it options.
        option: The option of the command line that chooses one.
        many: Whether a run may use several at once (the key is a list, the option repeats).
    """

    name: str
    group: str
    key: str
    option: str
    many: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("callback", "swiftplug.callbacks", "callbacks", "--callback", many=True),
        Kind("loss", "swiftplug.losses", "loss", "--loss"),
        Kind("loss_scale", "swiftplug.loss_scales", "loss_scale", "--loss-scale"),
        Kind("metric", "swiftplug.metrics", "metrics", "--metric", many=True),
        Kind("optimizer", "swiftplug.optimizers", "optimizer", "--optimizer"),
        Kind("tools", "swiftplug.tools", "tools", "--tools"),
        Kind("tuner", "swiftplug.tuners", "tuner", "--tuner"),
        Kind("prm", "swiftplug.prms", "prm", "--prm", many=True),
        Kind("orm", "swiftplug.orms", "orm", "--orm", many=True),
        Kind("model", "swiftplug.models", "model", "--model"),
        Kind("dataset", "swiftplug.datasets", "dataset", "--dataset", many=True),
        Kind("engine", "swiftplug.engines", "engine", "--engine"),
    )
}

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
        tables: The names of the module-level table that a plugin file in the style of SWIFT 3 defines.
    """

    name: str
    group: str
    key: str
    option: str
    many: bool = False
    tables: tuple[str, ...] = ()


# What other tools call a task, and the end of the message that there is no such task here.
_ONLINE = "tasks that train on what they sample: grpo, rloo and ppo"
OTHER_TASKS = {
    **dict.fromkeys(("gkd", "online_dpo"), _ONLINE),
    **dict.fromkeys(("reinforce", "reinforce++"), "did you mean 'rloo'?"),
    **dict.fromkeys(("reward", "reward_model", "reward_modeling", "reward_modelling"), "did you mean 'rm'?"),
    **dict.fromkeys(("classification", "sequence_classification"), "did you mean 'seq_cls'?"),
    **dict.fromkeys(("ipo", "hinge"), "it is a loss_type of dpo: --task dpo --set task.loss_type={}"),
}

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("task", "swiftplug.tasks", "task", "--task"),
        Kind("callback", "swiftplug.callbacks", "callbacks", "--callback", many=True, tables=("extra_callbacks",)),
        Kind("loss", "swiftplug.losses", "loss", "--loss", tables=("LOSS_MAPPING", "loss_mapping", "loss_map")),
        Kind("loss_scale", "swiftplug.loss_scales", "loss_scale", "--loss-scale", tables=("loss_scale_map",)),
        Kind(
            "metric", "swiftplug.metrics", "metrics", "--metric", many=True, tables=("METRIC_MAPPING", "metric_mapping")
        ),
        Kind("optimizer", "swiftplug.optimizers", "optimizer", "--optimizer", tables=("optimizers_map",)),
        Kind("tools", "swiftplug.tools", "tools", "--tools", tables=("tools_prompt",)),
        Kind("tuner", "swiftplug.tuners", "tuner", "--tuner", tables=("extra_tuners", "tuners_map")),
        Kind("prm", "swiftplug.prms", "prm", "--prm", many=True, tables=("prms",)),
        Kind("orm", "swiftplug.orms", "orm", "--orm", many=True, tables=("orms",)),
        Kind("model", "swiftplug.models", "model", "--model"),
        Kind("dataset", "swiftplug.datasets", "dataset", "--dataset", many=True),
        Kind("engine", "swiftplug.engines", "engine", "--engine"),
        Kind("environment", "swiftplug.environments", "environment", "--environment"),
    )
}

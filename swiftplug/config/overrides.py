"""What the command line changes in a config: options, and `--set KEY=VALUE`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from swiftplug.config.complain import shown
from swiftplug.config.tree import Origin, Path, Tree
from swiftplug.config.yaml_text import read_value
from swiftplug.errors import UserError, nearest

OPTIONS = {
    "task": "--task",
    "model": "--model",
    "dataset": "--dataset",
    "eval_dataset": "--eval-dataset",
    "output_dir": "--output-dir",
    "tuner": "--tuner",
    "optimizer": "--optimizer",
    "loss": "--loss",
    "loss_scale": "--loss-scale",
    "tools": "--tools",
    "metrics": "--metric",
    "callbacks": "--callback",
    "plugins.files": "--plugin",
    "data.template": "--template",
    "adapter": "--adapter",
    "engine": "--engine",
    "orm": "--orm",
    "prm": "--prm",
    "system": "--system",
    "num_return_sequences": "--num-return-sequences",
    "n_best_to_keep": "--n-best-to-keep",
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "prm_threshold": "--prm-threshold",
    "prm_reduce": "--prm-reduce",
    "easy_query_threshold": "--easy-query-threshold",
    "include_reference": "--include-reference",
    "candidates_file": "--candidates-file",
    "shard": "--shard",
}
"""The config key of each option that stands for one."""

PLUGIN_LISTS = frozenset({"dataset", "eval_dataset", "metrics", "callbacks", "orm", "prm"})
PLUGIN_KEYS = PLUGIN_LISTS | {"model", "tuner", "optimizer", "loss", "loss_scale", "tools", "engine"}


class Override(NamedTuple):
    """One `--set KEY=VALUE`.

    Attributes:
        key: The key at the top of the config.
        rest: What follows it behind a dot, "" if nothing does.
        value: The value, read as YAML.
        origin: The option as typed.
    """

    key: str
    rest: str
    value: Any
    origin: Origin

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read `KEY=VALUE`.

        Raises:
            UserError: There is no `=`, a part of the key is empty, or the value is not YAML.
        """
        origin = Origin(f"--set {text}")
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"{origin.place}: expected KEY=VALUE, such as training.learning_rate=1e-4")
        key, _, rest = key.strip().partition(".")
        return cls(key, rest, read_value(value, origin.place), origin)

    @property
    def names_plugin(self) -> bool:
        """Whether it says which plugin, not what options the plugin gets."""
        return self.key in PLUGIN_KEYS and (not self.rest or (self.rest == "name" and self.key not in PLUGIN_LISTS))


def apply_overrides(
    tree: Tree, options: Mapping[str, Any], overrides: Sequence[Override], defaults: Mapping[str, str]
) -> None:
    """Lay `--set` and then options over a config; options of plugins come last, for the plugin that is named by then.

    Args:
        tree: The config, changed in place.
        options: Values by config key, only of those that were given.
        overrides: Every `--set`, in order.
        defaults: The plugin that a key means when nothing names one.

    Raises:
        UserError: An override has no place in the config.
    """
    for override in overrides:
        if override.names_plugin:
            _name_plugin(tree, override.key, override.value, override.origin)
        elif override.key not in PLUGIN_KEYS:
            path = (override.key, *override.rest.split(".")) if override.rest else (override.key,)
            _put(tree, path, override.value, override.origin)
    for key, value in options.items():
        origin = Origin(OPTIONS[key])
        if key in PLUGIN_KEYS:
            _name_plugin(tree, key, list(value) if key in PLUGIN_LISTS else value, origin)
        elif key == "plugins.files":
            files = _listed(tree.get("plugins", "files"))
            _put(tree, ("plugins", "files"), [*files, *(file for file in value if file not in files)], origin)
        else:
            _put(tree, tuple(key.split(".")), value, origin)
    for override in overrides:
        if override.key in PLUGIN_KEYS and not override.names_plugin:
            _give_option(tree, override, defaults)


def _put(tree: Tree, path: Path, value: Any, origin: Origin) -> None:
    try:
        tree.put(path, value, origin)
    except KeyError as error:
        at = ".".join(map(str, error.args[0]))
        raise UserError(f"{origin.place}: {at!r} is {shown(tree.get(*error.args[0]))}, which has no keys") from None


def _name_plugin(tree: Tree, key: str, value: Any, origin: Origin) -> None:
    """Choose a plugin, or a list of them; one that was there already by that name keeps its options."""
    before = {_base(item): item for item in _listed(tree.get(key)) if isinstance(item, dict)}

    def kept(item: Any) -> Any:
        old = before.get(_base(item))
        return {**old, "name": item} if isinstance(item, str) and old else item

    tree.put((key,), [kept(item) for item in value] if isinstance(value, list) else kept(value), origin)


def _give_option(tree: Tree, override: Override, defaults: Mapping[str, str]) -> None:
    """Set one option of the plugin that a key names: `loss.gamma`, `metrics.nlg.max_new_tokens`."""
    key, rest, origin = override.key, override.rest, override.origin
    if key in PLUGIN_LISTS:
        items = _listed(tree.get(key))
        index, rest = _find(items, override)
        if tree.get(key) is not items:
            tree.put((key,), items, tree.origins.get((key,), origin))
        path: Path = (key, index)
    else:
        path = (key,)
        if tree.get(key) is None:
            if key not in defaults:
                raise UserError(f"{origin.place}: no {key} is named that could take an option")
            tree.put(path, defaults[key], origin)
    chosen = tree.get(*path)
    if isinstance(chosen, str):
        tree.put(path, {"name": chosen}, tree.origins.nearest(path) or origin)
    _put(tree, (*path, *rest.split(".")), override.value, origin)


def _find(items: list[Any], override: Override) -> tuple[int, str]:
    """Which item of a list `NAME.OPTION` means, and the option; names may have dots in them."""
    found = [
        (index, override.rest[len(name) + 1 :])
        for index, item in enumerate(items)
        for name in _names(item)
        if override.rest.startswith(f"{name}.")
    ]
    if not found:
        name = override.rest.partition(".")[0]
        known = {name for item in items for name in _names(item)}
        hint = nearest(name, known) if known else f"; name one with {OPTIONS[override.key]}"
        raise UserError(f"{override.origin.place}: no {name!r} among {override.key!r}{hint}")
    shortest = min(found, key=lambda match: len(match[1]))
    if len({index for index, option in found if option == shortest[1]}) > 1:
        raise UserError(f"{override.origin.place}: several of {override.key!r} have that name")
    return shortest


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _base(item: Any) -> str:
    """The name of an item, without the number of rows that a dataset's may end in."""
    name = item.get("name") if isinstance(item, dict) else item
    return re.sub(r"#\d+$", "", name) if isinstance(name, str) else ""


def _names(item: Any) -> set[str]:
    """What an item may be called: its name, with or without the distribution."""
    base = _base(item)
    return {name for name in (base, base.partition(":")[2]) if name}

"""Runs the contract of a plugin: its shape, one call on tiny input, then the properties of its kind."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from swiftplug.errors import ContractError, UserError, nearest
from swiftplug.plugin.registry import KINDS, FoundPlugin, Registry
from swiftplug.plugin.registry.errors import MissingExtraError, OptionError, describe_error
from swiftplug.plugin.registry.finder import FROM_FILE
from swiftplug.testing.inputs import OverdueError, load, time_limit

_MODULES = {"loss": "losses", "orm": "rewards", "prm": "rewards", "tools": "tools"}  # of other kinds their plural

_READ_COLUMNS = ("orm", "prm", "environment")

_SECONDS = 120.0


class ContractBroken(AssertionError):  # noqa: N818  (pytest shows it before the message, as a sentence)
    """A plugin does not keep the contract of its kind. The message says what was seen and what to change."""


def check_plugin(kind: str, plugin: object, *, columns: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Run the contract of a kind with a plugin, for real, on a tiny model and a few rows.

    It needs neither a network nor a GPU, and takes about a second; one that takes two minutes in the main thread counts
    as hanging. What is checked, by kind:

    - `loss`: a finite scalar with a finite gradient, in float32 and for bfloat16 logits; logits at a position predict
      the label at the next; neither padding nor labels of -100 change it; micro-batches add up to the whole batch;
      weights act linearly.
    - `loss_scale`: parts that join to the text and weights of at least 0, for text of every sort, length and context.
    - `tuner`: it wraps, trains, saves and opens again to the same outputs, and trains on from there.
    - `optimizer`: it moves all that trains and nothing else, and a saved state continues bit for bit.
    - `callback`: two trainings, with and without evaluation; one continued from a checkpoint is the unbroken one.
    - `orm`, `prm`: one reward for each answer, which depends on nothing but that answer and its row.
    - `metric`: numbers that depend neither on the order of the rows nor on how they are batched.
    - `tools`: the names of all tools in a text, whatever their parameters.
    - `model`: logits and offsets; the same seed gives the same weights, and a saved model is the same model.
    - `dataset`: rows that a task can read, the same ones each time.
    - `engine`: so many candidates for each prompt, which depend on seed and prompt alone; one that `follows` draws from
      a model in training as it is, and leaves it as it was.
    - `environment`: messages that depend on the row and the answers alone, however many episodes are played at a time.
    - `task`: a loss with a gradient that depends neither on padding nor on how a step is cut into batches.

    Args:
        kind: The kind: `loss`, `tuner`, `orm`...
        plugin: What an entry point names (a class, a function, an instance or a pair), or the name or qualified name of
            an installed plugin.
        columns: Columns of the rows that an ORM, a PRM or an environment needs, by name, such as `{"difficulty": 3}`;
            each row has these values.
        **options: Options of the plugin, as in a config.

    Raises:
        ContractBroken: It does not keep its contract; the message says what was seen and what to change.
        UserError: It cannot be checked like this: there is no such kind or plugin, its extra is not installed, it needs
            an option or a column, or refuses the tiny model.

    Example:
        >>> from swiftplug.testing import check_plugin
        >>> from my_package import MyLoss
        >>>
        >>> def test_my_loss_keeps_its_contract():
        ...     check_plugin("loss", MyLoss, gamma=2.0)
    """
    named = kind if isinstance(kind, str) else ""
    if named not in KINDS:
        raise UserError(f"there is no kind {kind!r}{nearest(named, KINDS)}")
    if columns and kind not in _READ_COLUMNS:
        raise UserError(f"columns: only an orm, a prm or an environment reads them, not a {kind}")
    found = _find(kind, plugin)
    label = f"{kind.replace('_', ' ')} {found.name!r}"
    try:
        module: Any = import_module(f"swiftplug.testing.{_MODULES.get(kind, f'{kind}s')}")
        with time_limit(_SECONDS):
            loaded = load(found, options)
            module.check(loaded, **({"columns": columns or {}} if kind in _READ_COLUMNS else {}))
    except (OptionError, MissingExtraError) as error:
        raise UserError(f"{label} {error}") from error
    except (ContractError, OverdueError) as error:
        raise ContractBroken(f"{label} {error}") from error
    except UserError as error:
        raise UserError(str(error) if repr(found.name) in str(error) else f"{label}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ContractBroken(f"{label} raised {describe_error(error)}") from error


def _find(kind: str, plugin: Any) -> FoundPlugin:
    """An installed plugin by its name, or an object as if a plugin file had it."""
    if isinstance(plugin, str):
        registry = Registry.discover()
        if kind != "model" or registry.has(kind, plugin):
            return registry.choose(kind, plugin, "check_plugin")
    named = plugin[0] if isinstance(plugin, tuple) and plugin else plugin  # a metric by its first function
    named = named.func if isinstance(named, partial) else named
    name = getattr(named, "__name__", None) or type(named).__name__
    return FoundPlugin(kind, name, FROM_FILE, "", f"{getattr(plugin, '__module__', '')}:{name}", obj=plugin)

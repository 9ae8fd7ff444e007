"""Runs the contract of a plugin: its shape, one call on tiny input, then the properties of its kind."""

from typing import Any

from swiftplug.errors import ContractError, UserError, nearest
from swiftplug.plugin.registry import KINDS, Registry
from swiftplug.plugin.registry.contracts import check_contract
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.errors import MissingExtraError, describe_error


class ContractBroken(AssertionError):  # noqa: N818  (read as a sentence in a failed test)
    """A plugin does not keep the contract of its kind. The message says what was seen and what to change."""


def check_plugin(kind: str, plugin: object, **options: Any) -> None:
    """Run the contract of a kind with a plugin, for real, on a tiny model and a few rows.

    Args:
        kind: The kind: `loss`, `tuner`, `orm`...
        plugin: What an entry point names (a class, a function, an instance or a pair), or the name or qualified name of
            an installed plugin.
        **options: Options of the plugin.

    Raises:
        ContractBroken: It does not keep its contract; the message says what was seen and what to change.
        UserError: It cannot be checked: there is no such kind or plugin, its extra is not installed, or it needs an
            option.

    Example:
        >>> from swiftplug.testing import check_plugin
        >>> from my_package import MyLoss
        >>>
        >>> def test_my_loss_keeps_its_contract():
        ...     check_plugin("loss", MyLoss, gamma=2.0)
    """
    from swiftplug.plugin.registry.options import bind, check_options  # they need pydantic
    from swiftplug.plugin.registry.trials import try_bound

    if kind not in KINDS:
        raise UserError(f"there is no kind {kind!r}{nearest(kind, KINDS)}")
    name = getattr(plugin, "__name__", type(plugin).__name__)
    if isinstance(plugin, str) and (kind != "model" or Registry.discover().has(kind, plugin)):
        name = plugin
        plugin = _load(kind, plugin)
    label = f"{kind.replace('_', ' ')} {name!r}"
    try:
        check_contract(kind, plugin)
        given = check_options(options, declared_options(kind, plugin))
        bound = bind(kind, name, plugin, given)
        try_bound(kind, bound)
    except ContractError as error:
        raise ContractBroken(f"{label} {error}") from error
    except UserError:
        raise
    except Exception as error:
        raise ContractBroken(f"{label} raised {describe_error(error)}") from error


def _load(kind: str, name: str) -> Any:
    """The object that an installed plugin's entry point names."""
    found = Registry.discover().choose(kind, name, "check_plugin")
    try:
        return found.load()
    except MissingExtraError as error:
        raise UserError(f"{found} {error}") from error

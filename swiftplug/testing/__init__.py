"""What the tests of plugin authors call: `check_plugin` runs the contract of a kind for real, on a tiny model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swiftplug.testing.check import ContractBroken, check_plugin

__all__ = ["ContractBroken", "check_plugin"]


def __getattr__(name: str) -> Any:
    # Imported when it is used: pytest imports this package wherever swiftplug is installed, for its pytest plugin.
    if name in __all__:
        from swiftplug.testing import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

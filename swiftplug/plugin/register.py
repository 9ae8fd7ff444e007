"""The decorators with which a `--plugin` file names what it brings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, overload

T = TypeVar("T")


class Registered(NamedTuple):
    """One use of a decorator."""

    kind: str
    name: str
    plugin: Any


registered: list[Registered] = []
"""Every use of a decorator in this process, in order; what loads a file looks at those that the file added."""


@dataclass(frozen=True)
class Register:
    """Registers plugins of one kind, as a decorator or by a call.

    In a file given by `--plugin` this is all it takes. An installed distribution declares entry points instead.

    Attributes:
        kind: The kind of plugin.

    Example:
        >>> @register_optimizer("sgd")
        ... def sgd(args, model, dataset, *, momentum: float = 0.9):
        ...     return torch.optim.SGD(model.parameters(), args.learning_rate, momentum), None
        >>> register_metric("accuracy", (compute, None))
    """

    kind: str

    @overload
    def __call__(self, name: str) -> Callable[[T], T]: ...
    @overload
    def __call__(self, name: str, plugin: T) -> T: ...
    def __call__(self, name: str, plugin: Any = None) -> Any:
        if plugin is None:
            return lambda decorated: self(name, decorated)
        registered.append(Registered(self.kind, name, plugin))
        return plugin


@overload
def register_loss_func(loss_type: str) -> Callable[[T], T]: ...
@overload
def register_loss_func(loss_type: str, loss_func: T) -> T: ...
def register_loss_func(loss_type: str, loss_func: Any = None) -> Any:
    """Register a loss, as a decorator or by a call, with the parameter names of SWIFT 3.0.

    Args:
        loss_type: What a config will call it.
        loss_func: The function, or the class; None to decorate it.

    Returns:
        The function, or the decorator.
    """
    return _register_loss(loss_type) if loss_func is None else _register_loss(loss_type, loss_func)


_register_loss = Register("loss")
register_callback = Register("callback")
register_loss_scale = Register("loss_scale")
register_metric = Register("metric")
register_optimizer = Register("optimizer")
register_tools = Register("tools")
register_tuner = Register("tuner")
register_prm = Register("prm")
register_orm = Register("orm")
register_model = Register("model")
register_dataset = Register("dataset")
register_engine = Register("engine")

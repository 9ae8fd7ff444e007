"""The contracts: what an object must look like to be a plugin of its kind, checked without calling it."""

import inspect
from functools import partial
from typing import Any, NamedTuple

from swiftplug.errors import ContractError, nearest
from swiftplug.plugin.engine import Engine
from swiftplug.plugin.environment import Environment
from swiftplug.plugin.loss import TokenLoss
from swiftplug.plugin.online import OnlineTask
from swiftplug.plugin.rewards import ORM, PRM
from swiftplug.plugin.task import TASK_KINDS, PreferenceTask, Rows, Task
from swiftplug.plugin.tuner import Tuner


class Call(NamedTuple):
    """How a function or a method is called.

    Attributes:
        positional: The arguments that are passed by position.
        keywords: The arguments that are passed by keyword.
        optional: The arguments that are passed by keyword if there is such a parameter.
        forms: The names that the first parameter may have, if it tells a form; only the first form is checked further.
    """

    positional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()

    def __str__(self) -> str:
        by_name = [f"{name}=..." for name in (*self.keywords, *self.optional)]
        return f"({', '.join([*self.positional, *by_name])})"


FIRST_PARAMETERS = ("infer_requests", "completions", "prompts")
"""What the first parameter of an ORM or a PRM is called: the name tells its form (see `BoundScorer`)."""

# The methods that a plugin of each kind has. Where the only one is `__call__`, it may be a function too.
CONTRACTS: dict[str, dict[str, Call]] = {
    "task": {"loss": Call(("model", "batch")), "counts": Call(("batch",)), "check_run": Call(("args",))},
    "callback": {"__call__": Call(("args",))},
    "loss": {"__call__": Call(("outputs", "labels"), optional=("loss_scale", "num_items_in_batch"))},
    "loss_scale": {"get_loss_scale": Call(("context", "context_type", "is_last_round"), ("query",), ("role",))},
    "metric": {"__call__": Call(("predictions", "references"))},
    "optimizer": {"__call__": Call(("args", "model", "dataset"))},
    "tools": {"__call__": Call(("tool_names", "tool_descs"))},
    "tuner": {
        "prepare_model": Call(("args", "model")),
        "save_pretrained": Call(("model", "save_directory"), ("state_dict", "safe_serialization")),
        "from_pretrained": Call(("model", "model_id"), ("is_trainable",)),
    },
    "prm": {"__call__": Call(("infer_requests",), ("ground_truths",), forms=FIRST_PARAMETERS)},
    "orm": {"__call__": Call(("infer_requests", "ground_truths"), forms=FIRST_PARAMETERS)},
    "model": {"__call__": Call(("args",))},
    "dataset": {"__call__": Call()},
    "engine": {
        "prompts_at_once": Call(("sampling",)),
        "open": Call(("args", "sampling")),
        "generate": Call(("prompts",)),
        "close": Call(),
    },
    "environment": {"reset": Call(("row",)), "step": Call(("messages",)), "reward": Call()},
}
# The methods of our base classes that a plugin has to define.
_NOT_IMPLEMENTED = [
    *(
        ORM.__call__,
        PRM.__call__,
        TokenLoss.token_loss,
        Engine.generate,
        Environment.step,
        Task.loss,
        PreferenceTask.pair_loss,
    ),
    *(Tuner.prepare_model, Tuner.save_pretrained, Tuner.from_pretrained),
]


def check_contract(kind: str, plugin: Any) -> None:
    """Raise a ContractError if an object does not fit the contract of a kind."""
    cls = plugin if inspect.isclass(plugin) else type(plugin)
    contract = CONTRACTS[kind]
    match kind:
        case "callback" if not is_function(plugin):
            from transformers import TrainerCallback

            if not issubclass(cls, TrainerCallback):
                raise ContractError(
                    f"is {_describe(plugin)}, expected a subclass of transformers.TrainerCallback, an instance of one, "
                    "or a function (args) that returns one"
                )
            contract = {}
        case "engine" if not issubclass(cls, Engine):
            raise ContractError(f"is {_describe(plugin)}, expected a subclass of swiftplug.plugin.Engine")
        case "environment" if plugin is not cls or not issubclass(cls, Environment):
            raise ContractError(
                f"is {_describe(plugin)}, expected a subclass of swiftplug.plugin.Environment, of which each candidate "
                "gets an instance"
            )
        case "task" if not issubclass(cls, Task):
            raise ContractError(f"is {_describe(plugin)}, expected a subclass of swiftplug.plugin.Task")
        case "task" if "loss" in getattr(plugin, "kinds", ()):  # whose plugin computes the loss
            contract = {name: call for name, call in contract.items() if name != "loss"}
        case "task" if issubclass(cls, OnlineTask):
            contract = {"estimate": Call(("drawn",)), **contract}
        case "task" if issubclass(cls, PreferenceTask):
            contract = {"pair_loss": Call(("chosen", "rejected")), **contract}
        case "loss" if plugin is cls and issubclass(cls, TokenLoss):
            contract = {"token_loss": Call(("logits", "targets"))}
        case "metric" if not compares_texts(plugin):
            contract = {}
            if not _makes_metric(plugin):
                check_metric_pair(plugin)
        case "model" if isinstance(plugin, str):
            contract = {}
        case "prm" if getattr(cls, "step_ends", PRM.step_ends) is not PRM.step_ends:
            contract = {"step_ends": Call(("text",)), **contract}
    for name, call in contract.items():
        if name == "__call__" and plugin is not cls:
            _check_call(plugin, call, takes_options=is_function(plugin))
        else:
            _check_method(kind, plugin, name, call)
    if kind == "task":
        _check_task(plugin)


def _check_task(task: Any) -> None:
    """Raise a ContractError if an attribute of a task has a value that nothing acts on."""
    rows = getattr(task, "rows", None)
    is_online = issubclass(task if inspect.isclass(task) else type(task), OnlineTask)
    if not isinstance(rows, Rows) or is_online != (rows is Rows.PROMPTS):
        readable = [f"Rows.{each.name}" for each in Rows if is_online == (each is Rows.PROMPTS)]
        raise ContractError(f"has rows {rows!r}, expected {' or '.join(readable)}")
    for name, found, known in (
        *(("kinds", kind, TASK_KINDS) for kind in task.kinds),
        ("weights", task.weights, ("any", "binary")),
        ("head", task.head, ("language", "sequence", "token")),
    ):
        if found not in known:
            raise ContractError(f"has {found!r} as its {name}{nearest(str(found), known)}")
    if task.head != "language" and task.num_labels is None and rows is not Rows.LABELLED:
        raise ContractError(f"has the head {task.head!r} without num_labels, expected how many numbers it gives")


def check_metric_pair(pair: Any) -> None:
    """Raise a ContractError if a metric is not `(compute(eval_prediction), preprocess(logits, labels) or None)`."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ContractError(
            f"is {_describe(pair)}, expected a pair (compute, preprocess or None), or a function of keyword-only "
            "options that returns one, or a class with `generate = True`"
        )
    compute, preprocess = pair
    _check_call(compute, Call(("eval_prediction",)), "compute")
    if preprocess is not None:
        _check_call(preprocess, Call(("logits", "labels")), "preprocess")


def is_function(plugin: Any) -> bool:
    """Whether a plugin is a function (or a partial of one), whose keyword-only parameters are its options."""
    return inspect.isroutine(plugin) or isinstance(plugin, partial)


def compares_texts(metric: Any) -> bool:
    """Whether a metric compares generated answers with references, instead of logits with labels."""
    return getattr(metric, "generate", False) is True


def form_of(signature: inspect.Signature) -> str:
    """The name of a scorer's first parameter; that of our form if it takes any arguments (`*args, **kwargs`)."""
    kinds = [each.kind for each in signature.parameters.values() if each.name != "self"]
    if kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        return FIRST_PARAMETERS[0]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((it.name for it in signature.parameters.values() if it.kind in named and it.name != "self"), "")


def _makes_metric(plugin: Any) -> bool:
    """Whether a plugin is a function that takes only options, and so returns the pair of a metric."""
    return is_function(plugin) and all(
        parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(plugin).parameters.values()
    )


def _check_method(kind: str, plugin: Any, name: str, call: Call) -> None:
    """Check a method of a class or an instance."""
    is_class = inspect.isclass(plugin)
    owner = next((base for base in (plugin if is_class else type(plugin)).__mro__ if name in vars(base)), None)
    if owner is None or getattr(owner, name) in _NOT_IMPLEMENTED:
        raise ContractError(f"is {_describe(plugin)} that does not define {name}{call}")
    if is_class and inspect.isfunction(vars(owner)[name]):
        if kind == "tuner":
            raise ContractError(f"must have {name}{call} as a static method")
        call = call._replace(positional=("self", *call.positional))
    _check_call(getattr(plugin, name), call, name, takes_options=name == "prepare_model")


def _check_call(function: Any, call: Call, name: str = "", *, takes_options: bool = False) -> None:
    """Check that a function can be called like this; `takes_options` allows other keyword-only parameters."""
    if not callable(function):
        raise ContractError(
            f"{f'has a {name} that is' if name else 'is'} {_describe(function)}, expected a callable {call}"
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not show their signature
        return
    parameters = signature.parameters.values()
    if call.forms:
        first = form_of(signature)
        if first not in call.forms:
            begins = f"has the first parameter {first!r}" if first else "has no parameter that has a name"
            raise ContractError(
                f"{begins}, expected 'infer_requests', or 'completions' or 'prompts' as in ms-swift and TRL: a scorer "
                "gets what its parameters name"
            )
        if first != call.forms[0] or any(each.kind is each.VAR_KEYWORD for each in parameters):  # it gets all by name
            return
    passed = {*call.keywords, *(signature.parameters.keys() & set(call.optional))}
    if takes_options:
        passed |= {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    try:
        signature.bind(*call.positional, **dict.fromkeys(passed))
    except TypeError as error:
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        found = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
        raise ContractError(f"has the wrong signature {name}{found}, expected {name}{call} ({error})") from None


def _describe(plugin: Any) -> str:
    if inspect.isclass(plugin):
        return f"the class {plugin.__name__}"
    if is_function(plugin):
        return "a function"
    if isinstance(plugin, str | int | float):
        return f"{type(plugin).__name__} {plugin!r:.60}"
    return f"an instance of {type(plugin).__name__}"

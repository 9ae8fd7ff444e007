"""A resolved plugin is ready for use, its options applied and of the right types."""

import inspect
import itertools
import re
import sys
from typing import Any

import pytest
from transformers import TrainerCallback

from swiftplug.errors import UserError
from swiftplug.plugin import TokenLoss
from swiftplug.plugin.registry import KINDS, PluginChoice, Registry


@pytest.fixture
def resolve(install: Any) -> Any:
    """Resolve `it` of a module with the given text as a plugin of a kind, with options."""
    count = itertools.count()

    def resolve(kind: str, text: str, **options: Any) -> Any:
        module = f"acme_{next(count)}"
        group = KINDS[kind].group.removeprefix("swiftplug.")
        install("acme", {group: {"it": f"{module}:it"}}, {f"{module}.py": text}, folder=module)
        return Registry.discover().resolve(kind, PluginChoice(name="acme:it", options=options), where=kind)

    return resolve


@pytest.fixture
def refusal(resolve: Any) -> Any:
    def refusal(kind: str, text: str, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            resolve(kind, text, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


TYPED = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated, Literal
from pydantic import Field
if TYPE_CHECKING:
    from somewhere import Unknown
def it(outputs, labels, loss_scale=None, *, number: float = 1, whole: int = 1, pair: tuple[float, float] = (0, 1),
       mode: Literal['a', 'b'] = 'a', flag: bool = False, table: dict[str, list[int]] = {}, loose=None,
       unresolved: Unknown = None, implicit: int = None, bounded: Annotated[float, Field(gt=0)] = 1.0,
       num_items_in_batch=None, **kwargs):
    return locals()
"""


@pytest.mark.parametrize(
    ("option", "given", "taken"),
    [
        ("number", "1e-4", 1e-4),
        ("number", 3, 3.0),
        ("whole", "7", 7),
        ("whole", 7.0, 7),
        ("pair", [0.9, "0.95"], (0.9, 0.95)),
        ("pair", "0.9, 0.95", (0.9, 0.95)),
        ("mode", "b", "b"),
        ("flag", "true", True),
        ("table", {"x": ["1", 2]}, {"x": [1, 2]}),
        ("loose", [1, "x"], [1, "x"]),
        ("unresolved", "anything", "anything"),
        ("implicit", None, None),
        ("bounded", "0.5", 0.5),
    ],
)
def test_options_become_the_annotated_types(resolve: Any, option: str, given: Any, taken: Any) -> None:
    value = resolve("loss", TYPED, **{option: given}).bound(1, 2)[option]
    assert value == taken
    assert type(value) is type(taken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nummber": 1}, "takes no option 'nummber'; did you mean 'number'?"),
        ({"loss_scale": 1}, "takes no option 'loss_scale'"),
        ({"num_items_in_batch": 1}, "takes no option 'num_items_in_batch'"),
        ({"number": "much"}, "option 'number': input should be a valid number.*found 'much'"),
        ({"whole": 1.5}, "option 'whole': .*found 1.5"),
        ({"mode": "c"}, "option 'mode': input should be 'a' or 'b', found 'c'"),
        ({"bounded": 0}, "option 'bounded': input should be greater than 0, found 0"),
        ({"table": {"x": [1, "y"]}}, r"option 'table'\['x'\]\[1\]: .*\(found 'y'\)"),
        ({"number": None}, "option 'number': .*found None"),
        ({"number": True}, "option 'number': input should be a number, found True"),
        ({"whole": False}, "option 'whole': input should be a number, found False"),
        ({"pair": [True, 0.5]}, "option 'pair': input should be a number"),
        ({"table": {"x": [1, True]}}, "option 'table': input should be a number"),
        ({"flag": 1}, "option 'flag': input should be true or false, found 1"),
    ],
)
def test_wrong_options(refusal: Any, options: dict[str, Any], message: str) -> None:
    refused = refusal("loss", TYPED, **options)
    assert refused.startswith("loss: loss 'it' of acme 1.0")
    assert re.search(message, refused)


def test_a_parameter_that_is_not_keyword_only_is_named(refusal: Any) -> None:
    message = refusal("dataset", "def it(size: int = 3): return size\n", size=4)
    assert message == (
        "dataset: dataset 'it' of acme 1.0 takes no option 'size': the parameter is not keyword-only; "
        "declare it after `*`"
    )


def test_options_of_a_partial_are_checked_as_those_of_its_function(resolve: Any, refusal: Any) -> None:
    text = "from functools import partial\ndef f(a, b, *, gamma: float = 1, alpha: int = 2): return gamma, alpha\n"
    text += "it = partial(f, alpha=3)\n"
    assert resolve("loss", text, gamma="2").bound(1, 2) == (2.0, 3)
    assert "option 'gamma': input should be a valid number" in refusal("loss", text, gamma="abc")


@pytest.mark.parametrize("annotation", ["list['Unknown']", "'Unknown'", "'re.Unknown'", "'a list'", "'1 | None'"])
def test_an_annotation_that_cannot_be_resolved_takes_anything(resolve: Any, annotation: str) -> None:
    text = f"import re\ndef it(a, b, *, modules: {annotation} = ()): return modules\n"
    assert resolve("loss", text, modules=["x"]).bound(1, 2) == ["x"]


def test_an_annotation_that_fails_is_an_error_of_the_plugin(refusal: Any) -> None:
    message = refusal("loss", "def it(a, b, *, rate: '1 / 0' = 0): return rate\n", rate=1)
    assert "'it' of acme 1.0 is broken: ZeroDivisionError: division by zero" in message


def test_an_error_that_a_plugin_raises_itself_begins_with_what_named_it(refusal: Any) -> None:
    raising = "from swiftplug.errors import UserError\ndef no(**options): raise UserError(f'not with {options}')\n"
    made = raising + "class it:\n    __init__ = lambda self, *, x: no(x=x)\n    def __call__(self, a, b): return 0\n"
    assert refusal("loss", made, x=1) == "loss: not with {'x': 1}"
    hooked = raising + "def it(a, b, *, x=0): return 0\nit.check_options = no\n"
    assert refusal("loss", hooked, x=1) == "loss: not with {'x': 1}"


def test_the_signature_of_a_loss_with_options_still_shows_what_it_takes(resolve: Any) -> None:
    parameters = inspect.signature(resolve("loss", TYPED, number=2).bound).parameters
    assert {"loss_scale", "num_items_in_batch"} <= parameters.keys()


def test_a_class_is_made_with_its_options(resolve: Any, refusal: Any) -> None:
    text = (
        "from dataclasses import dataclass\nfrom swiftplug.plugin import TokenLoss\n"
        "@dataclass\nclass it(TokenLoss):\n    gamma: float\n    alpha: int = 1\n"
        "    def token_loss(self, logits, targets): return self.gamma\n"
    )
    bound = resolve("loss", text, gamma="2").bound
    assert isinstance(bound, TokenLoss)
    assert (bound.gamma, bound.alpha) == (2.0, 1)  # type: ignore[attr-defined]
    assert refusal("loss", text) == "loss: loss 'it' of acme 1.0 needs the option 'gamma'"
    assert "did you mean 'alpha'" in refusal("loss", text, gamma=1, alfa=2)


def test_an_instance_takes_no_options(resolve: Any, refusal: Any) -> None:
    text = "class C:\n    def __call__(self, a, b): return 5\nit = C()\n"
    assert resolve("loss", text).bound(1, 2) == 5
    assert refusal("loss", text, x=1) == "loss: loss 'it' of acme 1.0 takes no options, found 'x'"


def test_variable_keywords_of_an_optimizer_take_any_option(resolve: Any) -> None:
    text = "def it(args, model, dataset, *, name: str, **rest):\n    return name, rest\n"
    assert resolve("optimizer", text, name="lion", betas=[1, 2]).bound(1, 2, 3) == ("lion", {"betas": [1, 2]})


@pytest.mark.parametrize(
    "text",
    [
        "class it(TrainerCallback):\n    def __init__(self, n: int = 1): self.n = n\n",
        "class C(TrainerCallback): ...\ndef it(args, *, n: int = 1):\n    c = C(); c.n = n; c.args = args; return c\n",
    ],
)
def test_callbacks(resolve: Any, text: str) -> None:
    make = resolve("callback", f"from transformers import TrainerCallback\n{text}", n="3").bound
    callback = make("args")
    assert isinstance(callback, TrainerCallback)
    assert callback.n == 3  # type: ignore[attr-defined]
    assert getattr(callback, "args", "args") == "args"


def test_a_callback_factory_that_returns_something_else(resolve: Any) -> None:
    make = resolve("callback", "def it(args): return 3\n").bound
    with pytest.raises(UserError, match=r"callback 'it'.*returned int, expected a TrainerCallback"):
        make(None)


def test_metrics(resolve: Any, refusal: Any) -> None:
    text = "def compute(p): return {'x': p}\ndef pre(logits, labels): return logits\n"
    pair = resolve("metric", text + "it = (compute, pre)\n").bound
    assert (pair.name, pair.compute(2), pair.preprocess(3, 4), pair.generate) == ("it", {"x": 2}, 3, False)
    made = resolve("metric", "def it(*, k: int = 1): return (lambda p: {'k': k}), None\n", k="5").bound
    assert (made.compute(0), made.preprocess) == ({"k": 5}, None)
    assert "expected a pair" in refusal("metric", "def it(*, k: int = 1): return 3\n")
    assert "takes no options" in refusal("metric", text + "it = (compute, pre)\n", k=1)


def test_metrics_that_generate(resolve: Any) -> None:
    text = (
        "class it:\n    generate = True\n"
        "    def __init__(self, max_new_tokens: int = 16): self.max_new_tokens = max_new_tokens\n"
        "    def __call__(self, predictions, references): return {'n': len(predictions)}\n"
    )
    metric = resolve("metric", text, max_new_tokens="9").bound
    assert (metric.generate, metric.max_new_tokens, metric.compute(["a"], ["b"])) == (True, 9, {"n": 1})
    text = "def it(predictions, references, *, lower: bool = False): return {'l': lower}\nit.generate = True\n"
    metric = resolve("metric", text, lower=True).bound
    assert (metric.generate, metric.max_new_tokens, metric.compute([], [])) == (True, 256, {"l": True})


TUNER = """
class it:
    @staticmethod
    def prepare_model(args, model, *, r: int = 8, **fields): return args, model, r, fields
    @staticmethod
    def save_pretrained(model, save_directory, safe_serialization=True, **kwargs):
        saved.append((save_directory, kwargs))
    @staticmethod
    def from_pretrained(model, model_id, **kwargs): return model, model_id, kwargs
saved = []
"""


def test_tuners(resolve: Any) -> None:
    tuner = resolve("tuner", TUNER, r="4", alpha=2).bound
    assert tuner.prepare_model("args", "model") == ("args", "model", 4, {"alpha": 2})
    assert tuner.from_pretrained("model", "id", is_trainable=True) == ("model", "id", {"is_trainable": True})
    tuner.save_pretrained("model", "folder")
    tuner.save_pretrained("model", "folder", state_dict={"w": 1})
    assert sys.modules[tuner.tuner.__module__].saved == [("folder", {}), ("folder", {"state_dict": {"w": 1}})]


def test_attributes_of_a_function_survive_its_options(resolve: Any) -> None:
    text = (
        "def it(tool_names, tool_descs, *, style: str = 'x'): return style\nit.format_calls = lambda calls: 'called'\n"
    )
    tools = resolve("tools", text, style="y").bound
    assert tools([], []) == "y"
    assert tools.format_calls([]) == "called"


def test_rewards_models_and_datasets(resolve: Any) -> None:
    text = "class it:\n    def __init__(self, w: float = 1): self.w = w\n"
    text += "    def __call__(self, infer_requests, ground_truths, **kw): return [self.w]\n"
    assert resolve("orm", text, w="2").bound([], []) == [2.0]
    assert resolve("prm", "def it(infer_requests, **kw): return [kw]\n").bound([], ground_truths=[]) == [
        {"ground_truths": []}
    ]
    assert resolve("model", "it = 'org/model'\n").bound == "org/model"
    assert resolve("model", "def it(args, *, n: int = 1): return args, n\n", n="2").bound("a") == ("a", 2)
    assert resolve("dataset", "def it(*, rows: int = 1, **more): return rows, more\n", rows="2", x=1).bound() == (
        2,
        {"x": 1},
    )

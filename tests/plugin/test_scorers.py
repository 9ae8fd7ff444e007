"""Rewards in the forms that exist elsewhere: each is called by the names of its parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swiftplug.errors import UserError
from swiftplug.plugin.registry import BoundScorer, PluginChoice, Registry
from swiftplug.plugin.rewards import InferRequest

FILE = """
from functools import partial
from swiftplug.plugin import ORM, PRM, orms, prms

class Same(ORM):
    "As ms-swift has it: strings, and the columns by name."
    def __init__(self, args=None, **kwargs):
        super().__init__(args, **kwargs)
    def __call__(self, completions, solution, **kwargs):
        assert kwargs["level"] == [1, None] and kwargs["messages"][0][-1]["content"] == "4"
        return [float(answer == truth) for answer, truth in zip(completions, solution, strict=True)]

class AsyncSame(ORM):
    async def __call__(self, completions, ground_truth):
        return [float(answer == truth) for answer, truth in zip(completions, ground_truth, strict=True)]

class Requests(ORM):
    "As in ms-swift 4: requests by key, and the solution by name."
    def __call__(self, infer_requests, solution, **kwargs):
        answers = [request["messages"][-1]["content"] for request in infer_requests]
        return [float(answer == truth) for answer, truth in zip(answers, solution, strict=True)]

class Keywords(ORM):
    def __call__(self, infer_requests, **kwargs):
        answers = [request["messages"][-1]["content"] for request in infer_requests]
        return [float(answer == truth) for answer, truth in zip(answers, kwargs["ground_truths"], strict=True)]

class Old:
    "As in early ms-swift 3: a static method."
    @staticmethod
    def infer(infer_requests, ground_truths, **kwargs):
        return [float(it.messages[-1]["content"] == truth) for it, truth in zip(infer_requests, ground_truths)]

class OldSteps(PRM):
    @staticmethod
    def infer(infer_requests, ground_truths=None, **kwargs):
        return [[float(len(line)) for line in it.messages[-1]["content"].splitlines()] for it in infer_requests]

def trl(prompts, completions, level, *, least=0, log_extra=None, **kwargs):
    assert [prompt[-1]["role"] for prompt in prompts] == ["user", "user"]
    assert all(it == [{"role": "assistant", "content": it[0]["content"]}] for it in completions)
    assert "least" not in kwargs and "level" not in kwargs and kwargs["tools"] == [None, None]
    return [None if it is None else float(it > least) for it in level]

async def trl_async(completions, solution, unknown=7, **kwargs):
    return [float(it[-1]["content"] == truth and unknown == 7) for it, truth in zip(completions, solution, strict=True)]

def defaulted(completions, prompts=None, solution=None, level=None):
    return [float(None not in (prompts, solution, level))] * len(completions)

class Steps(PRM):
    def __call__(self, completions, **kwargs):
        return [[float(len(line)) for line in it.splitlines()] for it in completions]

orms.update(same=Same, async_same=AsyncSame, requests=Requests, trl=trl, trl_async=trl_async, defaulted=defaulted)
orms.update(keywords=Keywords, old=Old, old_instance=Old())
prms["old"] = OldSteps
orms["fixed"] = partial(trl, least=5)
prms["steps"] = Steps
"""


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BoundScorer]:
    file = tmp_path_factory.mktemp("forms") / "forms.py"
    file.write_text(FILE)
    registry = Registry.discover(files=[file])

    def resolve(kind: str, name: str, **options: Any) -> BoundScorer:
        bound = registry.resolve(kind, PluginChoice(name=name, options=options), f"--{kind}").bound
        assert isinstance(bound, BoundScorer)
        return bound

    return resolve


def rewards(scorer: BoundScorer) -> Any:
    """Rewards of a right answer and of a wrong one; only the first row has the column `level`."""
    question = {"role": "user", "content": "2 + 2?"}
    requests = [
        InferRequest([question, {"role": "assistant", "content": "4"}], {"solution": "4", "level": 1}),
        InferRequest([question, {"role": "assistant", "content": "four\n4!"}], {"solution": "4"}),
    ]
    return scorer(requests, ["4", "4"])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("same", {}, [1.0, 0.0]),
        ("async_same", {}, [1.0, 0.0]),  # no row has a column `ground_truth`: it is the reference
        ("requests", {}, [1.0, 0.0]),
        ("keywords", {}, [1.0, 0.0]),
        ("old", {}, [1.0, 0.0]),
        ("old_instance", {}, [1.0, 0.0]),
        ("trl", {}, [1.0, None]),
        ("trl", {"least": 1}, [0.0, None]),
        ("fixed", {}, [0.0, None]),
        ("trl_async", {}, [1.0, 0.0]),
        ("defaulted", {}, [1.0, 1.0]),
    ],
)
def test_each_form_gets_what_it_names(
    resolve: Callable[..., BoundScorer], name: str, options: dict[str, Any], expected: list[Any]
) -> None:
    assert rewards(resolve("orm", name, **options)) == expected


def test_a_prm_may_have_these_forms_too(resolve: Callable[..., BoundScorer]) -> None:
    for name in ("steps", "old"):
        assert rewards(resolve("prm", name)) == [[1.0], [4.0, 2.0]]


def test_what_a_scorer_needs_is_known_before_it_is_called(resolve: Callable[..., BoundScorer]) -> None:
    needs = {
        name: resolve("orm", name).needed_columns for name in ("same", "requests", "trl", "trl_async", "defaulted")
    }
    assert needs == {
        "same": ["solution"],
        "requests": ["solution"],
        "trl": ["level"],
        "trl_async": ["solution"],
        "defaulted": [],
    }
    assert [resolve("orm", name).needs_reference for name in ("same", "trl", "requests")] == [False, False, True]


def test_options_and_unknown_forms_are_refused_by_name(resolve: Callable[..., BoundScorer], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no option 'most'"):
        resolve("orm", "trl", most=3)
    file = tmp_path / "odd.py"
    file.write_text("from swiftplug.plugin import orms\norms['odd'] = lambda answers, truths: [1.0]\n")
    with pytest.raises(UserError, match=r"--orm: orm 'odd' .*has the first parameter 'answers', expected 'infer_req"):
        Registry.discover(files=[file]).resolve("orm", PluginChoice(name="odd"), "--orm")


def test_rewards_of_trl_work_as_they_are(tmp_path: Path) -> None:
    """TRL's own functions: a missing solution gives None, and the timeouts of math-verify need the main thread."""
    file = tmp_path / "of_trl.py"
    file.write_text(
        "from swiftplug.plugin import orms\nfrom trl.rewards import accuracy_reward, think_format_reward\n"
        "orms.update(accuracy=accuracy_reward, think=think_format_reward)\n"
    )
    registry = Registry.discover(files=[file])
    answers = [r"<think>x</think>\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", r"\boxed{1}"]
    requests = [InferRequest([{"role": "assistant", "content": answer}]) for answer in answers]
    truths = [r"$\frac{1}{3}$", r"$\frac{1}{3}$", "unknown"]
    accuracy, think = (registry.resolve("orm", PluginChoice(name=it), "").bound for it in ("accuracy", "think"))
    assert accuracy(requests, truths) == [1.0, 0.0, None]
    assert think(requests, truths) == [1.0, 0.0, 0.0]


def test_a_request_is_read_by_attribute_and_by_key() -> None:
    request = InferRequest([{"role": "user", "content": "q"}], {"solution": "4"})
    assert request.solution == request["solution"] == request.get("solution") == "4"
    assert request["messages"] is request.messages
    assert request.get("level") is None and "level" not in request and [*request] == ["messages", "solution"]
    with pytest.raises(KeyError):
        request["level"]
    with pytest.raises(AttributeError, match="the row has no column 'level'; it has solution"):
        _ = request.level

"""`--plugin FILE.py`: decorators, older-style tables, and the error of a file that fails."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from swiftplug import __version__
from swiftplug.errors import UserError
from swiftplug.plugin import ContextType, InferRequest, ToolTurns, split_parts_by_regex, split_str_parts_by
from swiftplug.plugin.registry import PluginChoice, Registry

DECORATORS = '''
from swiftplug.plugin import *

@register_loss_func("loss-a")
def loss_a(outputs, labels, *, k: int = 1):
    """Loss A."""
    return k

def loss_b(outputs, labels): return "b"
register_loss_func("loss-b", loss_b)
register_loss_func(loss_type="loss-c", loss_func=loss_b)

@register_loss_scale("scale")
class Scale(LossScale):
    def __init__(self, weight: float = 3): self.weight = weight
    def get_loss_scale(self, context, context_type, is_last_round, **kwargs): return [context], [self.weight]

register_metric("pair", (lambda p: {"x": 1.0}, None))

@register_optimizer("opt")
def opt(args, model, dataset): return None, None

@register_tools("tools")
def tools(tool_names, tool_descs): return "T"

@register_tuner("tuner")
class T(Tuner):
    @staticmethod
    def prepare_model(args, model): return model
    @staticmethod
    def save_pretrained(model, save_directory, safe_serialization=True, **kwargs): ...
    @staticmethod
    def from_pretrained(model, model_id, **kwargs): return model

@register_orm("orm")
class O(ORM):
    def __call__(self, infer_requests, ground_truths, **kwargs): return [1.0]

@register_prm("prm")
class P(PRM):
    def __call__(self, infer_requests, **kwargs): return [1.0]

@register_model("model")
def model(args): return 1, 2

@register_dataset("data")
def data(*, rows: int = 2): return rows

@register_callback("callback")
def callback(args):
    from transformers import TrainerCallback
    return TrainerCallback()
'''

TABLES = '''
from transformers import TrainerCallback
from swiftplug.plugin import (
    LossScale, Tuner, PRM, ORM, ContextType, ModelKeys, MODEL_ARCH_MAPPING, find_all_linears,
    register_loss_func, register_tools)

class Stop(TrainerCallback):
    """Stops."""
    def __init__(self, n=3): self.n = n

extra_callbacks = [Stop(), Stop(5), Stop]

@register_loss_func("mine")
def mine(outputs, labels, loss_scale=None, num_items_in_batch=None): return 7

LOSS_MAPPING = {"mine": mine, "plain": mine, "wrapped": {"loss_func": mine}}

class Scale(LossScale):
    def get_loss_scale(self, context, context_type, is_last_round, *, query=None):
        if context_type == ContextType.RESPONSE:
            return [context], [2.0]
        return super().get_loss_scale(context, context_type, is_last_round)

loss_scale_map = {"instance": Scale(), "class": Scale, "default": LossScale()}

def compute(prediction): return {"m": 1.0}
METRIC_MAPPING = {"m": (compute, None)}
optimizers_map = {"o": lambda args, model, dataset: (None, None)}
@register_tools("t")
def texts(tool_names, tool_descs): return "+".join(tool_descs)
tools_prompt = {"t": texts, "u": texts}

class Tune(Tuner):
    @staticmethod
    def prepare_model(args, model): return model
    @staticmethod
    def save_pretrained(model, save_directory, safe_serialization=True, **kwargs): ...
    @staticmethod
    def from_pretrained(model, model_id, **kwargs): return model
extra_tuners = {"tune": Tune}

class Reward(ORM):
    def __call__(self, infer_requests, ground_truths, **kwargs): return [0.5]
class Steps(PRM):
    def __call__(self, infer_requests, **kwargs): return [0.5]
orms = {"r": Reward}
prms = {"s": Steps}
'''


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def names(registry: Registry) -> set[tuple[str, str]]:
    return {(it.kind, it.name) for it in registry.found() if it.from_file}


def resolve(registry: Registry, kind: str, name: str, **options: Any) -> Any:
    return registry.resolve(kind, PluginChoice(name=name, options=options), f"--{kind}").bound


def test_decorators_of_every_kind(write: Any) -> None:
    path = write(DECORATORS)
    registry = Registry.discover(files=[path])
    expected = {("loss", "loss-a"), ("loss", "loss-b"), ("loss", "loss-c"), ("loss_scale", "scale")}
    expected |= {("metric", "pair"), ("optimizer", "opt"), ("tools", "tools"), ("tuner", "tuner"), ("orm", "orm")}
    expected |= {("prm", "prm"), ("model", "model"), ("dataset", "data"), ("callback", "callback")}
    assert names(registry) == expected
    for kind, name in expected:
        resolve(registry, kind, name)
        resolve(registry, kind, f"file:{name}")
    assert resolve(registry, "loss", "loss-a", k="4")(0, 0) == 4
    assert resolve(registry, "loss", "loss-c")(0, 0) == "b"
    assert resolve(registry, "dataset", "data", rows="9")() == 9
    assert registry.always_on_callbacks == []
    (found,) = (it for it in registry.found("loss") if it.name == "loss-a")
    assert (found.qualified_name, found.version, found.summary) == ("file:loss-a", "", "Loss A.")
    assert found.value == f"{path}:loss_a"


def test_older_style_tables_of_every_kind(write: Any) -> None:
    path = write(TABLES)
    registry = Registry.discover(files=[path])
    expected = {("callback", "Stop"), ("callback", "Stop_2"), ("callback", "Stop_3")}
    expected |= {("loss", "mine"), ("loss", "plain"), ("loss", "wrapped"), ("metric", "m"), ("optimizer", "o")}
    expected |= {("loss_scale", it) for it in ("instance", "class", "default")}
    expected |= {("tools", "t"), ("tools", "u"), ("tuner", "tune"), ("orm", "r"), ("prm", "s")}
    assert names(registry) == expected
    for kind, name in expected:
        resolve(registry, kind, f"file:{name}")
    assert resolve(registry, "loss", "wrapped")(0, 0) == 7
    for scale in ("instance", "class"):
        weigh = resolve(registry, "loss_scale", scale).get_loss_scale
        assert weigh("x", ContextType.RESPONSE, True, query="q") == (["x"], [2.0])
        assert weigh("x", ContextType.OTHER, True, query="q") == (["x"], [0.0])
    assert resolve(registry, "tools", "u")(["a", "b"], ["x", {"y": "é"}]) == 'x+{"y": "é"}'
    assert registry.resolve("tools", PluginChoice(name="u"), "--tools").source_file == str(path)
    assert [loaded.bound(None).n for loaded in registry.always_on_callbacks] == [3, 5, 3]
    assert {loaded.found.qualified_name for loaded in registry.always_on_callbacks} == {
        "file:Stop",
        "file:Stop_2",
        "file:Stop_3",
    }
    assert {loaded.source_file for loaded in registry.always_on_callbacks} == {str(path)}


def test_a_file_comes_before_what_is_installed_and_says_so(write: Any, install: Any) -> None:
    install("acme", {"loss_scales": {"default": "acme:f", "react": "acme:f"}}, {"acme.py": ""})
    path = write(TABLES)
    registry = Registry.discover(files=[path])
    registry.check_name("loss_scale", "default", "--loss-scale")
    for _ in range(2):
        weigh = resolve(registry, "loss_scale", "default").get_loss_scale
        assert weigh.__self__ is registry.found("loss_scale")[-1].obj
    ours = f"swiftplug {__version__}"
    assert registry.notes == [
        f"loss scale 'default' is that of {path}, not acme:default (acme 1.0) or swiftplug:default ({ours})"
    ]
    assert resolve(registry, "loss_scale", "swiftplug:default") is not weigh.__self__
    assert resolve(registry, "loss_scale", "file:default") is weigh.__self__
    with pytest.raises(UserError, match=r"'react' is ambiguous: acme:react .* and swiftplug:react"):
        registry.check_name("loss_scale", "react", "--loss-scale")
    assert len(registry.notes) == 1


def test_tables_of_the_package_may_be_written_into(write: Any) -> None:
    path = write(
        "from swiftplug.plugin import optimizers_map, METRIC_MAPPING as metrics, extra_callbacks\n"
        "import swiftplug.plugin as sp\n"
        "from transformers import TrainerCallback\n"
        "class Here(TrainerCallback): ...\n"
        "optimizers_map['mine'] = lambda args, model, dataset: (None, None)\n"
        "metrics.update(m=(lambda p: {}, None))\n"
        "sp.tools_prompt['t'] = lambda tool_names, tool_descs: 'T'\n"
        "extra_callbacks.append(Here())\n"
        "extra_callbacks += [Here]\n"
    )
    expected = {("optimizer", "mine"), ("metric", "m"), ("tools", "t"), ("callback", "Here"), ("callback", "Here_2")}
    for _ in range(2):  # a second time in one process finds the same
        registry = Registry.discover(files=[path])
        assert names(registry) == expected
        assert len(registry.always_on_callbacks) == 2
    other = Registry.discover(files=[write("orms = {'r': lambda requests, truths: []}\n", "other.py")])
    assert names(other) == {("orm", "r")}


def test_a_file_runs_once_however_often_it_is_looked_at(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "from transformers import TrainerCallback\n"
        "from swiftplug.plugin import register_loss_func\n"
        "class Watch(TrainerCallback): ...\n"
        "watch = Watch()\n"
        "def custom(args, model, dataset): return None, None\n"
        "@register_loss_func('decorated')\n"
        "def loss(outputs, labels): return 0\n",
        "lies_beside.py",
    )
    text = (
        "import lies_beside\n"
        "from swiftplug.plugin import extra_callbacks, optimizers_map\n"
        "optimizers_map['mine'] = lies_beside.custom\n"
        "extra_callbacks.append(lies_beside.watch)\n"
        "print('running')\n"
    )
    path = write(text)
    for _ in range(2):  # a run looks for names first, and resolves them later
        registry = Registry.discover(files=[path])
        assert names(registry) == {("optimizer", "mine"), ("callback", "Watch"), ("loss", "decorated")}
        assert len(registry.always_on_callbacks) == 1
    assert capsys.readouterr().out == "running\n"
    write(text + "prms = {'steps': lambda requests, **kwargs: []}\n")
    assert ("prm", "steps") in names(Registry.discover(files=[path]))  # changed, it is another file


def test_files_that_import_what_lies_beside_them(write: Any) -> None:
    write("def beside(outputs, labels): return 11\n", "beside_it.py")
    path = write("from beside_it import beside\nfrom swiftplug.plugin import *\nregister_loss_func('b', beside)\n")
    registry = Registry.discover(files=[path])
    assert resolve(registry, "loss", "b")(0, 0) == 11


def test_two_files_of_one_base_name_do_not_disturb_each_other(write: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = "from swiftplug.plugin import *\n@register_loss_func('{0}')\ndef f(outputs, labels): return '{0}'\n"
    files = [write(text.format("one")), write(text.format("two"), "sub/mine.py")]
    registry = Registry.discover(files=[*files, files[0]])
    assert [resolve(registry, "loss", name)(0, 0) for name in ("one", "two")] == ["one", "two"]


def test_a_file_below_the_home_folder_is_found(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves the ~ of `--plugin=~/mine.py` to the program."""
    file = write("loss_mapping = {'mine': lambda outputs, labels: 1}")
    monkeypatch.setenv("HOME", str(file.parent))
    [found] = [it for it in Registry.discover(files=[f"~/{file.name}", file]).found("loss") if it.from_file]
    assert found.source == str(file)


def test_two_files_with_one_name_are_ambiguous(write: Any) -> None:
    text = "from swiftplug.plugin import *\n@register_loss_func('x')\ndef f(outputs, labels): return 0\n"
    text += "register_loss_func('focal', f)\n"
    registry = Registry.discover(files=[write(text), write(text, "other.py")])
    for name in ("x", "focal"):
        with pytest.raises(UserError, match=r"mine\.py.* and .*other\.py.*rename one"):
            resolve(registry, "loss", name)
    assert not registry.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", r"mine\.py:2: SyntaxError: "),
        ("def g():\n    return y\n\nz = g()\n", r"mine\.py:2: NameError: name 'y' is not defined$"),
        ("\nimport json\njson.loads('{')\n", r"mine\.py:3: JSONDecodeError: "),
        ("import no_such_module\n", r"mine\.py:1: ModuleNotFoundError: No module named 'no_such_module'$"),
        ("from swift.plugin import Tuner\n", r"mine\.py:1: ModuleNotFoundError: .*swiftplug\.plugin"),
        ("from swiftplug.plugin import nope\n", r"mine\.py:1: ImportError: cannot import name 'nope'"),
        ("raise SystemExit\n", r"mine\.py:1: SystemExit$"),
        ("x = 1\n", "registers no plugin and has no table of plugins"),
        ("\norms = [1]\n", r"mine\.py:2: orms is a list, expected a dict of plugins by name"),
        ("extra_callbacks = {}\n", r"mine\.py:1: extra_callbacks is a dict, expected a list of callbacks"),
        ("optimizers_map = {1: len}\n", r"mine\.py:1: optimizers_map has the key 1"),
        (
            "from swiftplug.plugin import *\nfor i in range(2):\n    @register_orm('x')\n    def f(a, b): return i\n",
            r"two plugins are called orm 'x'",
        ),
    ],
)
def test_a_file_that_fails_is_one_line_with_its_place(write: Any, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Registry.discover(files=[write(text)])
    assert "\n" not in str(caught.value)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "notes.txt"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=f"--plugin .*{name}: there is no such Python file"):
        Registry.discover(files=[tmp_path / name])


def test_a_wrong_plugin_of_a_file_breaks_only_what_uses_it(write: Any) -> None:
    path = write("orms = {'good': lambda infer_requests, ground_truths: [], 'bad': lambda: 0}\nextra_callbacks = [3]\n")
    registry = Registry.discover(files=[path])
    assert resolve(registry, "orm", "good")
    with pytest.raises(
        UserError, match=rf"--orm: orm 'bad' of {re.escape(str(path))} has no parameter that has a name"
    ):
        resolve(registry, "orm", "bad")
    with pytest.raises(UserError, match=r"extra_callbacks: callback 'int' of .* is int 3, expected a subclass"):
        _ = registry.always_on_callbacks


def test_the_allow_list_does_not_keep_a_given_file_out(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTPLUG_PLUGINS", "")
    registry = Registry.discover(files=[write(DECORATORS)], allow=[])
    assert resolve(registry, "loss", "loss-a")(0, 0) == 1


LATER_TABLES = """
from dataclasses import dataclass
import json
from swiftplug.plugin import AgentKeyword, ORM, PRM, loss_mapping, metric_mapping, tools_prompt, orms, prms

def doubled(outputs, labels, loss_scale=None, num_items_in_batch=None): return 2
loss_mapping["doubled"] = doubled
loss_map = {"again": doubled}

def same_texts(preds, labels): return {"same": float(preds == labels)}
def marked(prediction, label): return {"same": float(prediction == label)}
marked.generate = True
metric_mapping.update(by_parameters=(same_texts, None), by_mark=(marked, None), tokens=(lambda p: {}, None))

@dataclass
class Words:
    action: str = "DO:"
    action_input: str = "WITH:"
    observation: str = "SAW:"

def names(tool_names, tool_descs): return " ".join(d["description"] for d in tool_descs)
def in_system(tool_names, tools, system):
    system = system or ""
    return system + "\\n\\n# Tools\\n" + "\\n".join([json.dumps(tool) for tool in tools])
def without_system(tool_names, tools, system): return ",".join(tool_names)
def in_the_middle(tool_names, tools, system): return f"first {system}"
tools_prompt.update(
    pair=(names, Words()), mapping=(names, {"action": "A:", "action_input": "I:", "observation": "O:"}),
    default=(names, AgentKeyword()), in_system=(in_system, AgentKeyword()), without_system=without_system,
    in_the_middle=in_the_middle)

class Reward(ORM):
    def infer(self, infer_requests, ground_truths, **kwargs): return [1.0 for _ in infer_requests]
class Half(Reward):
    def infer(self, infer_requests, ground_truths, **kwargs): return [0.5 for _ in infer_requests]
class Plain:
    def infer(self, infer_requests, ground_truths, **kwargs): return [0.25 for _ in infer_requests]
class Steps(PRM):
    def infer(self, infer_requests, ground_truths, **kwargs): return [[1.0, 0.0] for _ in infer_requests]
class Both(Reward):
    def __call__(self, infer_requests, ground_truths, **kwargs): return [0.0 for _ in infer_requests]
orms.update(reward=Reward, half=Half, plain=Plain, both=Both)
prms["steps"] = Steps
"""
DICE = {"name": "dice", "description": "Roll it."}


def test_the_shapes_of_later_tables(write: Any) -> None:
    registry = Registry.discover(files=[write(LATER_TABLES)])
    for name in ("doubled", "again"):
        assert resolve(registry, "loss", name)(None, None) == 2
    for name in ("by_parameters", "by_mark"):
        metric = resolve(registry, "metric", name)
        assert (metric.generate, metric.compute(["a"], ["a"])) == (True, {"same": 1.0})
    assert not resolve(registry, "metric", "tokens").generate
    for name, rewards in {"reward": [1.0], "half": [0.5], "plain": [0.25], "both": [0.0]}.items():
        assert resolve(registry, "orm", name)([InferRequest([])], ["4"]) == rewards
    assert resolve(registry, "prm", "steps")([InferRequest([])], ["4"]) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "text", "call", "result"),
    [
        ("pair", "Roll it.", 'DO: dice\nWITH: {"é": 1}', "SAW: 6"),
        ("mapping", "Roll it.", 'A: dice\nI: {"é": 1}', "O: 6"),
        ("default", "Roll it.", 'Action: dice\nAction Input: {"é": 1}', "Observation: 6"),
        ("in_system", '# Tools\n{"name": "dice", "description": "Roll it."}', "Action: dice", "Observation: 6"),
        ("without_system", "dice", None, None),
    ],
)
def test_tools_formats_of_later_tables(write: Any, name: str, text: str, call: str | None, result: str | None) -> None:
    tools = resolve(Registry.discover(files=[write(LATER_TABLES)]), "tools", name)
    assert tools(["dice"], [DICE]) == text
    assert isinstance(tools, ToolTurns) is (call is not None)
    if call is not None:
        assert tools.format_calls([{"name": "dice", "arguments": {"é": 1}}]).startswith(call)
        assert tools.format_results([{"name": "dice", "content": "6"}]) == result


@pytest.mark.parametrize(
    "body",
    [
        "'\\n'.join(tool_descs)",
        "'' + tool_descs[0]",
        "tool_descs[0].strip()",
        "tool_descs[0][:99]",
        "json.dumps(json.loads(tool_descs[0]))",
        "re.sub('^', '', tool_descs[0])",
    ],
)
def test_a_tools_format_of_a_table_may_take_the_descriptions_as_texts(write: Any, body: str) -> None:
    text = f"import json, re\ndef texts(tool_names, tool_descs): return {body}\ntools_prompt = {{'t': texts}}\n"
    tools = resolve(Registry.discover(files=[write(text)]), "tools", "t")
    assert tools(["dice"], [DICE]) == '{"name": "dice", "description": "Roll it."}'


@pytest.mark.parametrize(
    ("body", "error", "calls"),
    [
        ("len(None)", r"TypeError.*NoneType.* has no len", 1),
        ("tool_names.names", r"AttributeError.*'list' object has no attribute 'names'", 1),
        ("''.join(tool_descs) and 1 / 0", r"ZeroDivisionError", 2),
    ],
)
def test_what_a_tools_format_of_a_table_raises_is_not_hidden(write: Any, body: str, error: str, calls: int) -> None:
    text = f"calls = []\ndef t(tool_names, tool_descs):\n    calls.append(1)\n    return {body}\n"
    tools = resolve(Registry.discover(files=[write(f"{text}tools_prompt = {{'t': t}}\n")]), "tools", "t")
    with pytest.raises(Exception) as caught:
        tools(["dice"], [DICE])
    assert re.search(error, repr(caught.value))
    assert len(inspect.unwrap(tools).__globals__["calls"]) == calls


def test_a_system_message_in_the_middle_is_refused(write: Any) -> None:
    tools = resolve(Registry.discover(files=[write(LATER_TABLES)]), "tools", "in_the_middle")
    with pytest.raises(UserError, match="tools format in_the_middle: writes the system message after other text"):
        tools(["dice"], [DICE])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from swiftplug.plugin import agent_templates", r"1: .*agent_templates of SWIFT .*@register_tools$"),
        ("x = 1\nagent_templates = {'x': 1}", r"2: agent_templates of SWIFT .*@register_tools$"),
        ("from swiftplug.plugin import callbacks_map", "extra_callbacks"),
        ("callbacks_map = {'x': 1}", "extra_callbacks"),
        ("metrics_map = {'x': 1}", "METRIC_MAPPING"),
        ("from swiftplug.plugin import ORM, orms, rm_plugins", "orms"),
        ("from swiftplug.plugin import BaseLoss, loss_map", "loss_mapping"),
        ("from swiftplug.plugin import get_logger", r"logging\.getLogger"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_with_its_counterpart(write: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"mine\.py:.*{message}"):
        Registry.discover(files=[write(f"{text}\n")])


class TestSplitting:
    """The parts that SWIFT's helpers give, worked out by hand from what its loss scales do with them."""

    def test_words(self) -> None:
        assert split_str_parts_by("Thought: a\nAction: b", ["Thought:", "Action:"]) == [
            {"key": "Thought:", "content": " a\n"},
            {"key": "Action:", "content": " b"},
        ]
        assert split_str_parts_by("so A:A:x", ["A:"]) == [
            {"key": "", "content": "so "},
            {"key": "A:", "content": ""},
            {"key": "A:", "content": "x"},
        ]
        assert split_str_parts_by("plain", []) == [{"key": "", "content": "plain"}]
        assert split_str_parts_by("", ["A"]) == [{"key": "", "content": ""}]
        # The word given first counts, and a word is no expression.
        assert split_str_parts_by("a.c abc", ["a.", "a.c", "a"])[0] == {"key": "a.", "content": "c "}

    def test_expressions(self) -> None:
        assert split_str_parts_by("x<t>1\n2</t>y", ["<t>.+?</t>", "z"], regex_mode=True) == [
            {"key": "", "content": "x"},
            {"key": "<t>.+?</t>", "content": "<t>1\n2</t>"},
            {"key": "", "content": "y"},
        ]
        parts = split_str_parts_by("1 Action: 22 b", ["Action:"])
        split_parts_by_regex(parts, {r"\d+": [2.0], r"(?i)\sB?$": [0.5]})
        assert parts == [
            {"key": 2.0, "content": "1"},
            {"key": 0.5, "content": " "},
            {"key": "Action:", "content": " 22 b"},
        ]

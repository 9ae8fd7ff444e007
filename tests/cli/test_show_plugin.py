"""`swiftplug show-plugin`: what the source says is what the plugin is, and what is shown can be used."""

import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from swiftplug.cli.list_plugins import list_plugins
from swiftplug.cli.show_plugin import _Page, show_plugin
from swiftplug.config.load import load_sample_config, load_train_config
from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS, FoundPlugin, Registry
from swiftplug.plugin.registry.declared import declared_options
from swiftplug.plugin.registry.definitions import Expression, describe
from swiftplug.plugin.registry.options import check_options

REGISTRY = Registry.discover()
INSTALLED = REGISTRY.found()
BUILT_IN = {found.name: found for found in INSTALLED if found.distribution == "swiftplug"}


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(name: str, width: int = 80, **options: Any) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        show_plugin(name, **options)
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("found", INSTALLED, ids=lambda found: f"{found.kind}-{found.name}")
def test_the_source_says_what_the_imported_plugin_is(found: FoundPlugin) -> None:
    """Also that nothing is imported for it: what is not in the source would have to be."""
    described = describe(FoundPlugin(found.kind, found.name, found.distribution, found.version, found.value))
    if described.needs:
        pytest.skip(described.needs)
    plugin = found.load()
    declared = declared_options(found.kind, plugin)
    assert [option.name for option in described.options] == [*declared.named]
    assert (described.any_other is not None) == declared.any_other
    for option in described.options:
        default = declared.named[option.name].default
        assert option.required == (default is inspect.Parameter.empty)
        if not option.required:
            assert option.default == json.loads(json.dumps(default)), option
        assert not isinstance(option.default, Expression)
        assert option.help or found.name == "bitfit", option
    if found.kind == "task":
        assert (described.rows, described.kinds) == (str(plugin.rows), plugin.kinds)
    if found.kind == "engine":
        assert described.follows == plugin.follows
    given = {option.name: option.default for option in described.options if not option.required}
    if len(given) == len(described.options):
        check_options(given, declared)  # so that the config shown can be pasted


@pytest.mark.parametrize(("engine", "follows"), [("transformers", True), ("openai", False), ("none", False)])
def test_an_engine_acts_in_the_tasks_that_draw_if_it_follows(engine: str, follows: bool, show: Any) -> None:
    used = "sample, and train in task grpo, ppo, rloo" if follows else "sample"
    assert f"  used in     {used}\n" in show(engine, kind="engine")
    [shown] = json.loads(show(engine, kind="engine", as_json=True))
    assert shown["tasks"] == (["grpo", "ppo", "rloo"] if follows else [])


def test_the_page_can_be_pasted(show: Any) -> None:
    page = show("lora")
    config = yaml.safe_load(page.partition("In a config\n")[2].partition("\nOn the command line")[0])
    assert config["tuner"]["r"] == 8
    assert config["tuner"].keys() == {"name", *(it.name for it in describe(BUILT_IN["lora"]).options)}
    command = shlex.split(page.splitlines()[-1])
    assert command == ["swiftplug", "train", "--tuner", "lora", "--set", "tuner.r=8"]


def test_the_config_and_the_command_of_every_plugin_load(tmp_path: Path) -> None:
    for found in INSTALLED:
        page = _Page(found, describe(found), REGISTRY, {}, [])
        key = KINDS[found.kind].key
        load: Any = load_sample_config if "sample" in page.command else load_train_config
        others = {"model": "m", "dataset": ["d"], "output_dir": "o"}
        if found.name == "none":
            others["candidates_file"] = "c.jsonl"
        (tmp_path / "pasted.yaml").write_text(json.dumps({**others, **yaml.safe_load(page.config)}))
        chosen = getattr(load(str(tmp_path / "pasted.yaml"), {}, []).config, key)
        chosen = chosen[0] if isinstance(chosen, list) else chosen
        assert chosen.name == found.name
        assert set(chosen.options) <= {option.name for option in page.described.options}
        _, _, option, name, *sets = shlex.split(page.command)
        assert option == KINDS[found.kind].option
        load(None, {**others, key: [name] if KINDS[found.kind].many else name}, sets[1::2])


def test_a_plugin_of_others(show: Any, install: Any) -> None:
    source = (
        "class Base:\n    def __init__(self, beta: float = 0.5, *, mode: 'Mode' = 'a'):\n"
        '        """Set it.\n\n        Args:\n            beta (float): How strong,\n                on two lines.\n'
        '        """\n'
    )
    modules = {
        "acme/__init__.py": "raise RuntimeError('imported')",
        "acme/base.py": f"from typing import Literal\nMode = Literal['a', 'b']\n{source}",
        "acme/orms.py": (
            "from .base import Base as B\n\n\nclass Orm(B):\n"
            '    """Says yes.\n\n    Raises:\n        ValueError: Never.\n    """\n\n'
            "    def __call__(self, infer_requests, ground_truths, **kwargs):\n        return [1.0]\n"
        ),
    }
    site = install("acme", {"orms": {"yes": "acme.orms:Orm"}}, modules, version="1.2")
    metadata = site / "acme-1.2.dist-info" / "METADATA"
    metadata.write_text(f"{metadata.read_text()}Project-URL: Source, https://a.example/s\n")
    [shown] = json.loads(show("yes", as_json=True))
    assert (shown["distribution"], shown["version"], shown["home_page"]) == ("acme", "1.2", "https://a.example/s")
    assert (shown["documentation"], shown["broken"]) == ("Says yes.", None)
    assert shown["options"] == [
        {"name": "beta", "type": "float", "required": False, "default": 0.5, "help": "How strong, on two lines."},
        {"name": "mode", "type": '"a" | "b"', "required": False, "default": "a", "help": ""},
    ]
    assert shown["command"] == "swiftplug sample --orm yes --set orm.yes.beta=0.5"


def test_what_the_source_does_not_say_is_imported_and_hidden(show: Any, install: Any) -> None:
    source = (
        "import dataclasses\nprint('noise')\n\n\n@dataclasses.dataclass\nclass Orm:\n"
        '    """Says yes."""\n\n    beta: float = 0.5\n    kept: dict = dataclasses.field(default_factory=dict)\n\n'
        "    def __call__(self, infer_requests, ground_truths, **kwargs):\n        return [1.0]\n"
    )
    install("acme", {"orms": {"yes": "acme_data:Orm"}}, {"acme_data.py": source})
    page = show("yes")
    assert page.startswith("yes  orm (--orm)\nSays yes.\n\n  from        acme 1.0\n")
    assert "  beta  (float, default 0.5)\n" in page
    assert "      # kept: ..." in page
    assert "noise" not in page


def test_a_broken_plugin_is_shown_as_far_as_it_can(install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install("acme", {"losses": {"bad": "bad:nothing"}}, {"bad.py": '"""Does bad."""\nimport nothing_at_all\n'})
    with pytest.raises(typer.Exit) as ended:
        show_plugin("bad")
    page = capsys.readouterr().out
    assert ended.value.exit_code == 1
    assert "Does bad." in page and "acme 1.0" in page
    assert "  broken      ModuleNotFoundError: No module named 'nothing_at_all'" in page


def test_control_characters_are_escaped_wherever_a_plugin_is_shown(
    show: Any, install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a distribution says of itself must not act on the terminal."""
    source = (
        'class Loss:\n    r"""Says \x1b[31mred\x1b[0m.\n\n    More \x9b5m."""\n\n'
        "    def __init__(self, mode: str = 'x'):\n"
        '        """Set it.\n\n        Args:\n            mode: In \\x1b[1mbold\\x07.\n        """\n\n'
        "    def __call__(self, outputs, labels):\n        raise ValueError('\\x1b[2J')\n"
    )
    points = {"losses": {"loud": "loud:Loss", "gone": "loud:\x1b[2J"}}
    site = install("loud", points, {"loud.py": source}, version="1\x1b[32m")
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(f"{metadata.read_text()}Home-page: https://a.example/\x1b]0;title\x07\n")
    page = show("loud", width=200)
    for said in (
        "Says \\x1b[31mred\\x1b[0m.",
        "More \\x9b5m.",
        "In \\x1b[1mbold\\x07.",
        "loud 1\\x1b[32m",
        "x1b]0;title",
    ):
        assert said in page
    with pytest.raises(typer.Exit):
        list_plugins(search=["loud"], check=True, verbose=True)
    listed = capsys.readouterr().out
    assert "ValueError: \\x1b[2J" in listed
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page + listed)


def test_an_extra_that_is_missing_is_named(show: Any, install: Any) -> None:
    modules = {"needy.py": "import no_such_thing\ndef f(args, *, beta: int = 1):\n    pass\n"}
    requires = ['no-such-thing; extra == "fast"']
    install("needy", {"callbacks": {"needy": "needy:f [fast]"}}, modules, requires=requires)
    page = show("needy")
    assert "needs       no-such-thing: pip install 'needy[fast]'" in page
    assert "beta  (int, default 1)" in page


def test_one_name_of_several_kinds_and_distributions(show: Any, install: Any) -> None:
    install("acme", {"datasets": {"arithmetic": "acme:f"}}, {"acme.py": "def f(): pass\n"})
    shown = json.loads(show("arithmetic", as_json=True))
    assert [(it["kind"], it["distribution"]) for it in shown] == [
        ("prm", "swiftplug"),
        ("dataset", "acme"),
        ("dataset", "swiftplug"),
    ]
    assert [it["command"].split()[3] for it in shown] == ["arithmetic", "acme:arithmetic", "swiftplug:arithmetic"]
    assert len(json.loads(show("arithmetic", kind="prm", as_json=True))) == 1


def test_a_file(show: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from swiftplug.plugin import register_loss_func\n\n\n@register_loss_func('mine')\n"
        'def loss(outputs, labels, *, beta: float = 2):\n    """Mine."""\n'
    )
    [shown] = json.loads(show("mine", files=[str(path)], as_json=True))
    assert [it["name"] for it in shown["options"]] == ["beta"]
    assert shown["command"] == f"swiftplug train --plugin {path} --loss mine --set loss.beta=2"
    assert yaml.safe_load(shown["config"])["plugins"] == {"files": [str(path)]}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_page_keeps_within_the_terminal(show: Any, width: int) -> None:
    for name in ("dpo", "client", "lora"):
        page = show(name, width=width)
        text, _, rest = page.partition("In a config\n")
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in page
        assert not [line for line in page.splitlines() if line != line.rstrip()]
        letters = "".join(text.split())
        for option in describe(BUILT_IN[name]).options:
            assert option.name in rest
            assert "".join(option.help.split())[:30] in letters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "foccal"}, "there is no plugin 'foccal'; did you mean 'focal'?"),
        ({"name": ""}, "there is no plugin ''; swiftplug list-plugins lists all"),
        ({"name": "lora", "kind": "loss"}, "there is no loss 'lora'; there is swiftplug:lora (tuner)"),
        ({"name": "focal", "kind": "losss"}, "--kind: there is no kind 'losss'; did you mean 'loss'?"),
        ({"name": "acme:focal"}, "there is no plugin 'acme:focal'; there is swiftplug:focal (loss)"),
    ],
)
def test_mistakes(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        show_plugin(**arguments)
    assert str(error.value) == message

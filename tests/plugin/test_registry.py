"""Resolving: which plugin a name means, and the error if it means none."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from swiftplug.config.load import load_train_config
from swiftplug.config.schema import TrainConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import PluginChoice, Registry
from swiftplug.runs.plugins import check_plugin_names

LOSS = "def f(outputs, labels, *, scale: float = 1.0):\n    return scale\n"


def resolve(kind: str, name: str, allow: list[str] | None = None, **options: Any) -> Any:
    return Registry.discover(allow=allow).resolve(kind, PluginChoice(name=name, options=options), f"--{kind}")


def refusal(kind: str, name: str, allow: list[str] | None = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        resolve(kind, name, allow, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_resolves_by_name_and_by_qualified_name_in_any_spelling(install: Any) -> None:
    site = install("Acme.Losses", {"losses": {"mine": "acme:f"}}, {"acme.py": LOSS}, version="3.1")
    for name in ("mine", "Acme.Losses:mine", "acme-losses:mine"):
        loaded = resolve("loss", name, scale="2.5")
        assert loaded.bound(None, None) == 2.5
        assert loaded.options == {"scale": 2.5}
        assert loaded.found.qualified_name == "Acme.Losses:mine"
        assert loaded.source_file == str(site / "acme.py")
        assert loaded.source_hash == hashlib.sha256(LOSS.encode()).hexdigest()


def test_the_hash_changes_with_the_module_that_defines_the_plugin(install: Any) -> None:
    files = {"acme/__init__.py": "from .core import f\n", "acme/core.py": LOSS}
    site = install("acme", {"losses": {"mine": "acme:f"}}, files)
    before = resolve("loss", "mine")
    assert before.source_file == str(site / "acme" / "core.py")
    (site / "acme" / "core.py").write_text(LOSS + "# changed\n")
    assert resolve("loss", "mine").source_hash != before.source_hash


def test_has_imports_nothing_and_knows_qualified_names(install: Any) -> None:
    install("acme", {"models": {"mine": "acme:f"}}, {"acme.py": "raise RuntimeError"})
    registry = Registry.discover()
    assert registry.has("model", "mine")
    assert registry.has("model", "acme:mine")
    assert not registry.has("loss", "mine")
    assert not registry.has("model", "org/mine:subset/split")
    assert not registry.has("model", "other:mine")


def test_ambiguity_names_both_and_a_qualified_name_settles_it(install: Any) -> None:
    for name in ("one", "two"):
        install(name, {"losses": {"same": f"{name}:f"}}, {f"{name}.py": LOSS})
    message = refusal("loss", "same")
    assert "--loss" in message
    assert "one:same (one 1.0)" in message
    assert "two:same (two 1.0)" in message
    assert resolve("loss", "two:same").found.distribution == "two"


def test_nothing_shadows_a_built_in(install: Any) -> None:
    install("acme", {"losses": {"cross_entropy": "acme:f"}}, {"acme.py": LOSS})
    message = refusal("loss", "cross_entropy")
    assert "acme:cross_entropy" in message
    assert "swiftplug:cross_entropy" in message
    assert resolve("loss", "swiftplug:cross_entropy").found.distribution == "swiftplug"


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert refusal("loss", "foccal") == "--loss: there is no loss 'foccal'; did you mean 'focal'?"
    assert "did you mean 'swiftplug:focal'?" in refusal("loss", "swiftplug:foccal")
    assert "loss scale 'zzz'" in refusal("loss_scale", "zzz")


def test_an_unknown_name_that_an_extra_brings_says_what_to_install() -> None:
    others = [it for it in Registry.discover().found() if it.distribution != "swiftplug-vllm"]
    with pytest.raises(UserError) as caught:
        Registry(others, {}).resolve("engine", PluginChoice(name="vllm"), "--engine")
    assert str(caught.value) == "--engine: there is no engine 'vllm'; install it with: pip install 'swiftplug[vllm]'"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import does_not_exist_anywhere", "ModuleNotFoundError: No module named 'does_not_exist_anywhere'"),
        ("\ndef f(:\n", "SyntaxError: .*acme.py:2"),
        ("x = 1\nraise ValueError('two\\nlines')", r"ValueError: two lines \(.*acme.py:2\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("g = 1", "AttributeError: module 'acme' has no attribute 'f'$"),
        (
            "from abc import ABC, abstractmethod\nclass f(ABC):\n    def __call__(self, outputs, labels): ...\n"
            "    @abstractmethod\n    def forgotten(self): ...",
            "TypeError: Can't instantiate abstract class f .*forgotten'?$",
        ),
    ],
)
def test_a_broken_plugin_is_one_line_with_its_cause_and_breaks_nothing_else(
    install: Any, text: str, cause: str
) -> None:
    install("acme-dist", {"losses": {"mine": "acme:f"}}, {"acme.py": text}, version="0.9")
    message = refusal("loss", "mine")
    assert message.startswith("--loss: loss 'mine' of acme-dist 0.9 is broken: ")
    assert re.search(cause, message)
    assert resolve("loss", "focal").bound


def test_a_missing_extra_says_what_to_install(install: Any) -> None:
    install(
        "acme",
        {"losses": {"mine": "acme:f [fast]"}},
        {"acme.py": "import no_such_thing"},
        requires=['no-such-thing>=2; extra == "fast"'],
    )
    message = refusal("loss", "mine")
    assert message == "--loss: loss 'mine' of acme 1.0 needs no-such-thing: pip install 'acme[fast]'"
    registry = Registry.discover()
    (found,) = (it for it in registry.found() if it.distribution == "acme")
    assert registry.check(found) == ("needs an extra", "needs no-such-thing: pip install 'acme[fast]'")


@pytest.mark.parametrize(
    ("environment", "allow", "allowed"),
    [
        (None, None, {"one", "two-x"}),
        ("one", None, {"one"}),
        ("One , Two.X", None, {"one", "two-x"}),
        (None, ["two_x"], {"two-x"}),
        ("one", ["one", "two-x"], {"one"}),
        ("one", ["two-x"], set()),
        ("", None, set()),
        (None, [], set()),
    ],
)
def test_the_allow_list(
    install: Any, monkeypatch: pytest.MonkeyPatch, environment: str | None, allow: list[str] | None, allowed: set[str]
) -> None:
    if environment is None:
        monkeypatch.delenv("SWIFTPLUG_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("SWIFTPLUG_PLUGINS", environment)
    for name, module in (("one", "one"), ("two-x", "two_x")):
        install(name, {"losses": {f"of-{name}": f"{module}:f"}}, {f"{module}.py": LOSS})
    registry = Registry.discover(allow=allow)
    mine = {"one", "two-x"}
    assert {it.distribution for it in registry.found("loss")} & mine == allowed
    assert {it.distribution for it in registry.refused("loss")} & mine == mine - allowed
    assert registry.resolve("loss", PluginChoice(name="focal"), "--loss").bound
    for name in mine - allowed:
        with pytest.raises(UserError, match=f"loss 'of-{name}' of {name} 1.0 is not allowed by (.*)$") as caught:
            registry.resolve("loss", PluginChoice(name=f"of-{name}"), "--loss")
        in_environment = environment is None or name in environment.lower().replace(".", "-")
        in_config = allow is None or name in [it.replace("_", "-") for it in allow]
        assert ("SWIFTPLUG_PLUGINS" in str(caught.value)) is not in_environment
        assert ("plugins.allow" in str(caught.value)) is not in_config


def test_a_refused_distribution_makes_no_name_ambiguous(install: Any) -> None:
    for name in ("one", "two"):
        install(name, {"losses": {"same": f"{name}:f"}}, {f"{name}.py": LOSS})
    assert resolve("loss", "same", allow=["two"]).found.distribution == "two"


def test_a_constructor_that_refuses_its_options_is_one_line(install: Any) -> None:
    text = "class F:\n    def __init__(self, n: int = 1):\n        if n < 1: raise ValueError('n must be\\npositive')\n"
    text += "    def __call__(self, outputs, labels): return 0\n"
    install("acme", {"losses": {"mine": "acme:F"}}, {"acme.py": text})
    assert "ValueError: n must be positive" in refusal("loss", "mine", n=0)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("tuner", "lora", {"r": 0}),
        ("tuner", "lora", {"lora_dropout": 1.0}),
        ("optimizer", "muon", {"momentum": 1}),
        ("optimizer", "muon", {"ns_steps": 0}),
        ("optimizer", "muon", {"adamw_lr": -1e-3}),
        ("optimizer", "lorap", {"lr_ratio": 0}),
        ("optimizer", "galore", {"rank": 0}),
        ("optimizer", "galore", {"update_proj_gap": 0}),
        ("metric", "nlg", {"max_new_tokens": 0}),
        ("metric", "exact_match", {"max_new_tokens": -1}),
        ("callback", "early_stop", {"patience": 0}),
        ("callback", "lisa", {"interval": 0}),
        ("loss", "focal", {"gamma": -1}),
        ("loss", "label_smoothing", {"epsilon": 1}),
    ],
)
def test_numbers_out_of_range_are_refused_before_there_is_a_model(
    kind: str, name: str, options: dict[str, float]
) -> None:
    if name in ("galore", "nlg"):
        pytest.importorskip({"galore": "pytorch_optimizer", "nlg": "rouge_score"}[name])
    message = refusal(kind, name, **options)
    assert message.startswith(f"--{kind}: ")
    (option,) = options
    assert option in message


def test_every_built_in_fits_its_contract_or_needs_an_extra() -> None:
    registry = Registry.discover()
    checks = {it.qualified_name: registry.check(it) for it in registry.found() if it.distribution == "swiftplug"}
    assert {name: check for name, check in checks.items() if check.status == "broken"} == {}


def test_a_path_comes_before_the_plugin_of_a_third_party(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("acme", {"datasets": {"rows.jsonl": "acme:f"}, "models": {"m": "acme:f"}}, {"acme.py": "def f(): ..."})
    registry = Registry.discover()
    assert registry.has("dataset", "rows.jsonl") and registry.has("model", "m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    for folder in ("m", "tiny"):
        (tmp_path / folder).mkdir()
    assert not registry.has("dataset", "rows.jsonl") and not registry.has("model", "m")
    assert registry.notes == [
        "dataset 'rows.jsonl' is the path, not acme:rows.jsonl (acme 1.0)",
        "model 'm' is the path, not acme:m (acme 1.0)",
    ]
    assert registry.has("dataset", "acme:rows.jsonl") and registry.has("model", "tiny")


def test_names_are_checked_before_anything_is_imported(install: Any) -> None:
    for name in ("one", "two"):
        install(name, {"optimizers": {"same": f"{name}:f"}}, {f"{name}.py": "raise RuntimeError"})
    config = TrainConfig.model_validate({"optimizer": "same"})
    with pytest.raises(UserError, match=r"optimizer: optimizer 'same' is ambiguous: one:same .* and two:same"):
        check_plugin_names(config)
    check_plugin_names(TrainConfig.model_validate({"optimizer": "one:same"}))
    with pytest.raises(UserError, match=r"not allowed by plugins\.allow"):
        check_plugin_names(TrainConfig.model_validate({"optimizer": "one:same", "plugins": {"allow": ["two"]}}))
    # Who names nothing of theirs is not disturbed, whatever they are called.
    install("three", {group: {"default": "three:f", "tiny": "three:f"} for group in ("models", "losses")}, {})
    check_plugin_names(load_train_config(None, {}, []).config)

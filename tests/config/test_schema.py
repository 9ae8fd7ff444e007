"""Every key is declared once, with all that YAML, `--set`, options and `--help` need to know of it."""

import pytest

from swiftplug.config.keys import keys_of
from swiftplug.config.load import load_sample_config
from swiftplug.config.schema import PANELS, RunConfig, SampleConfig, TrainConfig
from swiftplug.plugin.registry import KINDS

CONFIGS = pytest.mark.parametrize("config", [TrainConfig, SampleConfig])


@CONFIGS
def test_every_key_has_a_help_text(config: type[RunConfig]) -> None:
    for key in keys_of(config).values():
        if not key.is_section:
            assert key.help.endswith("."), key.name
            assert not key.panel or key.panel in PANELS


@CONFIGS
def test_no_two_options_have_one_name(config: type[RunConfig]) -> None:
    flags = [key.flag for key in keys_of(config).values() if key.panel]
    assert len(flags) == len(set(flags))


def test_every_kind_of_plugin_has_a_key_and_its_option() -> None:
    keys = {**keys_of(TrainConfig), **keys_of(SampleConfig)}
    for kind in KINDS.values():
        key = keys[kind.key]
        assert (key.is_plugin, key.is_list, key.flag, bool(key.panel)) == (True, kind.many, kind.option, True)
    assert keys["eval_dataset"].is_plugin and keys["eval_dataset"].is_list


def test_options_follow_from_keys() -> None:
    keys = keys_of(SampleConfig)
    assert keys["num_return_sequences"].flag == "--num-return-sequences"
    assert keys["plugins.files"].flag == "--plugin"
    assert keys_of(TrainConfig)["data.template"].flag == "--template"
    assert not keys["data.template"].panel and not keys["seed"].panel


def test_zero_is_a_value_like_any_other() -> None:
    options = {"model": "m", "dataset": ["d"], "top_k": 0, "temperature": 0.0}
    config = load_sample_config(None, options, ["top_k=5", "temperature=0.7"]).config
    assert (config.top_k, config.temperature) == (0, 0.0)

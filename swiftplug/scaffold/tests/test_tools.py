import json

from swiftplug.scaffold.package.tools import TaggedJSON

WEATHER = {"name": "weather", "description": "天气"}


def test_tools_follow_the_system_message() -> None:
    lines = TaggedJSON()(["weather", "dice"], [WEATHER, "Rolls a die."]).splitlines()
    assert lines[1:3] == ['<tool>{"name": "weather", "description": "天气"}</tool>', "<tool>Rolls a die.</tool>"]


def test_calls_and_results_have_tags() -> None:
    call = {"name": "weather", "arguments": {"city": "北京\n"}}
    text = TaggedJSON().format_calls([call, call])
    assert [json.loads(line.removeprefix("<call>").removesuffix("</call>")) for line in text.splitlines()] == [call] * 2
    assert TaggedJSON().format_results([{"name": "weather", "content": "sun"}]) == "<result>sun</result>"

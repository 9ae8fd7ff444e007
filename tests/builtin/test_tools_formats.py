"""The built-in tools formats, to the letter."""

from importlib.metadata import entry_points
from typing import Any

import pytest

from swiftplug.plugin.tools_format import ToolTurns

NAMES = ["get_weather", "search"]
DESCS: list[Any] = [
    {"name": "get_weather", "description": "查询天气", "parameters": {"city": "城市 {x}"}},
    "搜索: {query} → 结果",
]
WEATHER = '{"name": "get_weather", "description": "查询天气", "parameters": {"city": "城市 {x}"}}'
CALLS = [
    {"name": "get_weather", "arguments": {"city": "北京", "days": 2}},
    {"name": "search", "arguments": {}},
]
RESULTS = [{"name": "get_weather", "content": "晴 ☀️"}, {"name": "", "content": '{"n": 1}'}]


def tools_format(name: str) -> Any:
    [found] = entry_points(group="swiftplug.tools", name=name)
    return found.load()


REACT_EN = f"""\
Solve the user's task as well as you can. These tools are at your disposal:

get_weather: {WEATHER}
search: 搜索: {{query}} → 结果

Write in this form:

Thought: what is known, and what has to be done next
Action: the tool to use, one of [get_weather, search]
Action Input: the arguments for the tool, as a JSON object
Observation: what the tool returned
... (Thought, Action, Action Input and Observation are repeated as often as needed)
Thought: now I know the final answer
Final Answer: the final answer to the task"""

REACT_ZH = f"""\
请尽力完成用户的任务。你可以使用以下工具：

get_weather: {WEATHER}
search: 搜索: {{query}} → 结果

请按照以下格式书写：

Thought: 已知的情况，以及下一步要做什么
Action: 要使用的工具，必须是 [get_weather, search] 之一
Action Input: 传给工具的参数，写成 JSON 对象
Observation: 工具返回的结果
...（Thought、Action、Action Input 和 Observation 可按需要重复多次）
Thought: 现在我知道最终答案了
Final Answer: 任务的最终答案"""

GLM4 = f"""\
You are an AI assistant named ChatGLM. You are developed based on the GLM-4 model trained by Zhiyupo AI. \
Your task is to provide appropriate responses and support based on user questions and requests.

# Available Tools

## get_weather

{WEATHER}

## search

搜索: {{query}} → 结果

"""

TOOLBENCH = f"""\
Your task is to carry out what the user asks by calling APIs, one call at a time. Each step is written in this form:

Thought: what the results so far mean, and what to do next
Action: the API to call
Action Input: the arguments of the call, as a JSON object

You are then shown what the call returned, and take the next step. If a plan does not work out, try another.

The last step always calls the function `Finish`, either with the final answer:

Action: Finish
Action Input: {{"return_type": "give_answer", "final_answer": "all that the user should read"}}

or, if the APIs cannot do the task, to give it up:

Action: Finish
Action Input: {{"return_type": "give_up_and_restart"}}

These are the APIs:

get_weather: {WEATHER}
search: 搜索: {{query}} → 结果"""

HERMES = f"""\
You can call functions to help the user. Here are their signatures, one JSON object a line:
<tools>
{WEATHER}
{{"name": "search", "description": "搜索: {{query}} → 结果"}}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>, for each \
call anew:
<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>

What a call returned is then given to you between <tool_response> and </tool_response>."""

ACTIONS = """\
Action: get_weather
Action Input: {"city": "北京", "days": 2}
Action: search
Action Input: {}"""
OBSERVATIONS = """\
Observation: 晴 ☀️
Observation: {"n": 1}"""
HERMES_CALLS = """\
<tool_call>
{"name": "get_weather", "arguments": {"city": "北京", "days": 2}}
</tool_call>
<tool_call>
{"name": "search", "arguments": {}}
</tool_call>"""
HERMES_RESULTS = """\
<tool_response>
晴 ☀️
</tool_response>
<tool_response>
{"n": 1}
</tool_response>"""
GLM4_CALLS = 'get_weather\n{"city": "北京", "days": 2}\nsearch\n{}'
GLM4_RESULTS = '晴 ☀️\n{"n": 1}'


@pytest.mark.parametrize(
    ("name", "prompt", "calls", "results"),
    [
        ("react_en", REACT_EN, ACTIONS, OBSERVATIONS),
        ("react_zh", REACT_ZH, ACTIONS, OBSERVATIONS),
        ("toolbench", TOOLBENCH, ACTIONS, OBSERVATIONS),
        ("glm4", GLM4, GLM4_CALLS, GLM4_RESULTS),
        ("hermes", HERMES, HERMES_CALLS, HERMES_RESULTS),
    ],
)
def test_writes_tools_calls_and_results(name: str, prompt: str, calls: str, results: str) -> None:
    written = tools_format(name)
    assert isinstance(written, ToolTurns)
    assert written(NAMES, DESCS) == prompt
    assert written.format_calls(CALLS) == calls
    assert written.format_results(RESULTS) == results


def test_template_leaves_the_tools_to_the_chat_template() -> None:
    assert tools_format("template")(NAMES, DESCS) is None


@pytest.mark.parametrize("name", ["react_en", "toolbench", "glm4"])
def test_arguments_that_are_no_object_are_written_as_they_are(name: str) -> None:
    assert tools_format(name).format_calls([{"name": "f", "arguments": "北京, 2 天"}]).endswith("北京, 2 天")


def test_hermes_keeps_arguments_that_are_no_object_in_its_json() -> None:
    written = tools_format("hermes").format_calls([{"name": "f", "arguments": '"北京"'}])
    assert written == '<tool_call>\n{"name": "f", "arguments": "\\"北京\\""}\n</tool_call>'


@pytest.mark.parametrize(
    ("desc", "line"),
    [
        ('{"name":"f","x":1.50}', '{"name":"f","x":1.50}'),
        ('{\n  "name": "f",\n  "x": "天\\n气"\n}', '{"name": "f", "x": "天\\n气"}'),
        ("one\n二", '{"name": "f", "description": "one\\n二"}'),
        ("[1]", '{"name": "f", "description": "[1]"}'),
        ({"type": "function", "function": {"name": "f"}}, '{"type": "function", "function": {"name": "f"}}'),
    ],
)
def test_hermes_writes_each_signature_as_one_line_of_json(desc: Any, line: str) -> None:
    prompt = tools_format("hermes")(["f"], [desc])
    assert prompt.split("<tools>\n")[1].split("\n</tools>")[0] == line


@pytest.mark.parametrize("name", ["react_en", "react_zh", "toolbench", "glm4", "hermes"])
def test_refuses_names_and_descriptions_of_unequal_number(name: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        tools_format(name)(["a", "b"], ["only one"])

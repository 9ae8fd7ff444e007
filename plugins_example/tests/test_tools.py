import ast

from swiftplug_plugins_example.tools import PythonStubs

WEATHER = {
    "name": "weather",
    "description": "Look up\nthe weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def test_the_stubs_are_python() -> None:
    text = PythonStubs()(["weather", "dice"], [WEATHER, "Roll a die."])
    stubs = text.split("```python\n")[1].split("```")[0]
    assert stubs.splitlines() == [
        "def weather(city: str, days: int): ...  # Look up the weather.",
        "def dice(*args): ...  # Roll a die.",
    ]
    assert [node.name for node in ast.parse(stubs).body if isinstance(node, ast.FunctionDef)] == ["weather", "dice"]


def test_a_parameter_of_several_types_or_none_has_an_annotation() -> None:
    properties = {"id": {"type": ["string", "null"]}, "any": {}}
    text = PythonStubs()(["find"], [{"description": "Find it.", "parameters": {"properties": properties}}])
    assert "def find(id: str | None, any: Any): ...  # Find it." in text


def test_a_call_is_python_with_the_same_arguments() -> None:
    arguments = {"city": 'Pa"ris 北京', "days": 3}
    line = PythonStubs().format_calls([{"name": "weather", "arguments": arguments}])
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert call.func.id == "weather"
    assert {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords} == arguments
    assert "北京" in line


def test_arguments_that_are_no_object_stay_as_they_are() -> None:
    assert PythonStubs().format_calls([{"name": "dice", "arguments": "6"}]) == "dice(6)"


def test_results_come_one_a_line() -> None:
    results = [{"name": "dice", "content": "4"}, {"name": "dice", "content": "2"}]
    assert PythonStubs().format_results(results) == ">>> 4\n>>> 2"

"""The reference of a row is the text that the engine's candidates are compared with: calls and reasoning too."""

import json
from pathlib import Path

import pytest

from swiftplug.config.load import load_sample_config
from swiftplug.runs.plugins import resolve_plugins
from swiftplug.sampling.intake import read_inputs
from swiftplug.sampling.ledger import Ledger
from tests.sampling.conftest import DICE

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}[CALL]{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("engine", "tools", "expected"),
    [
        ("transformers", "template", '<think>sum</think>See:[CALL]add{"a": 2}'),
        (
            "dice",
            "template",
            '<think>\nsum\n</think>\n\nSee:\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
        ),
        ("dice", "react_en", '<think>\nsum\n</think>\n\nSee:\nAction: add\nAction Input: {"a": 2}'),
    ],
)
def test_a_reference_has_calls_and_reasoning(
    tmp_path: Path, tiny_model_dir: Path, engine: str, tools: str, expected: str
) -> None:
    answer = {"role": "assistant", "content": "See:", "reasoning_content": "sum", "tool_calls": [CALL]}
    plain = {"role": "assistant", "content": " 4 "}
    rows = [{"messages": [{"role": "user", "content": "2+2"}, last]} for last in (answer, plain)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    options = {
        "model": str(tiny_model_dir),
        "dataset": [str(tmp_path / "rows.jsonl")],
        "engine": engine,
        "tools": tools,
    }
    sets = [f"data.template={tmp_path / 'template.jinja'}", f"plugins.files={DICE}"]
    config = load_sample_config(None, {**options, "output_dir": str(tmp_path / "run")}, sets).config
    ledger = Ledger(tmp_path / "ledger", is_new=True)
    read_inputs(ledger, config, resolve_plugins(config), [])
    assert [row.reference for row in ledger.rows(range(2))] == [expected, "4"]
    ledger.close()

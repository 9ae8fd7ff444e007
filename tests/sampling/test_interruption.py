"""Ctrl-C says what is kept; a run without a candidate may be begun again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from swiftplug.config.load import load_sample_config
from swiftplug.errors import Interrupted
from swiftplug.sampling.run import sample

ENGINE = """
from swiftplug.plugin import Answered, Completion, Engine, register_engine

@register_engine("stopping")
class Stopping(Engine):
    may_change = ("after",)

    def __init__(self, after: int):
        self.left = after

    def prompts_at_once(self, sampling):
        return 1

    def generate(self, prompts):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        yield Answered(prompts[0].id, [Completion("1", "stop")] * 8)
"""


def test_what_is_kept(questions: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(ENGINE)
    given = {"model": "m", "dataset": [str(questions(4))], "engine": "stopping", "output_dir": str(tmp_path / "run")}
    given["plugins.files"] = [str(tmp_path / "stopping.py")]

    def run(after: int, *, resume: bool = False) -> None:
        sample(load_sample_config(None, given, [f"engine.after={after}"]).config, resume=resume)

    with pytest.raises(Interrupted, match="0 of 4 rows are kept"):
        run(0)
    with pytest.raises(Interrupted, match=r"stopped; 2 of 4 rows are kept; go on: swiftplug sample .*run --resume"):
        run(2)
    run(9, resume=True)
    assert len((tmp_path / "run" / "candidates.jsonl").read_text().splitlines()) == 4 * 8

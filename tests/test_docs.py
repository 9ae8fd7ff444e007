"""Every command and code block of README and docs/ does what the page says, in the order of the page.

A page has a folder and an environment of its own. A block whose paragraph above ends in the name of a file and a colon
is that file. Other blocks run: bash and Python, and JSON lines and configs are read. A block of text is the output of
the block above it: its lines come in this order, `...` stands for anything, and numbers may differ by a fifth
(durations, and what depends on them, by anything). A comment above a block may say `fails` (it ends with exit code 2),
or `not run: REASON`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

import swiftplug.plugin
from swiftplug.config.counterparts import counterparts
from swiftplug.config.keys import keys_of
from swiftplug.config.load import load_sample_config, load_train_config
from swiftplug.config.schema import SampleConfig, TrainConfig
from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS, Registry
from swiftplug.plugin.registry.definitions import describe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENDINGS = {"python": "py", "yaml": "yaml", "json": "jsonl?", "toml": "toml", "jinja": "jinja"}
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
DURATION = re.compile(rf"(?:\d+h)?(?:\d+m)?{NUMBER} ?(?:ms|s|min|h|tokens/s|kB|MB|GB|GiB)\b")


class Block(NamedTuple):
    """A fenced block: its language and text, its first line, the file that it is, and what the comment above says."""

    language: str
    text: str
    line: int
    file: str
    comment: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Those of Sphinx, such as `{toctree}`, are no code."""
    above = comment = ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "inline":
            above, comment = token.content, ""
        elif token.type == "html_block":
            comment = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
        elif token.type == "fence" and not token.info.startswith(("{", ":")):
            language = token.info.strip()
            named = re.search(rf"`([\w./-]+\.(?:{ENDINGS.get(language, '$')}))`[^`]*:$", above)
            assert token.map is not None
            yield Block(language, token.content, token.map[0] + 1, named[1] if named else "", comment)
            above = comment = ""


class Shell:
    """Runs what a reader would type, in a folder with an environment of its own on top of this one."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder = folder / "page"
        self.folder.mkdir()
        environment = folder / "environment"
        venv.create(environment)
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "base.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        (site / "checkout.pth").write_text(f"{ROOT}\n{ROOT / 'plugins_example'}\n")
        python = environment / "bin" / "python"
        self._write(environment / "bin" / "pip", f'exec {python} -m pip "$@"')
        # The quickstart takes a minute, and several pages begin with it: it is trained once.
        once = f"[ -e {shared}/done ] || {{ {python} -m swiftplug train >output 2>&1 && touch done; }}"
        self._write(
            environment / "bin" / "swiftplug",
            f'if [ "$*" = train ] && [ ! -e runs/quickstart ]; then\n'
            f"  (mkdir -p {shared} && cd {shared} && flock lock sh -c '{once}') || exit 1\n"
            f"  mkdir -p runs && cp -r {shared}/runs/quickstart runs/ && cat {shared}/output\n"
            f'else\n  exec {python} -m swiftplug "$@"\nfi',
        )
        self._write(environment / "bin" / "torchrun", f'exec {python} -m torch.distributed.run "$@"')
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        self._env = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(environment),
            "SWIFTPLUG_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "COLUMNS": "80",
        }

    @staticmethod
    def _write(file: Path, script: str) -> None:
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)

    def run(self, *command: str, text: str = "") -> tuple[int, str]:
        """The exit code and the output, with errors."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._env,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout


def agrees(shown: str, printed: str) -> str:
    """Why an output is not the one that is shown; empty if it is."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    position = 0
    for line in filter(None, (" ".join(line.split()) for line in shown.splitlines())):
        if line == "...":
            continue
        found = next((index for index in range(position, len(lines)) if _alike(line, lines[index])), None)
        if found is None:
            return f"no line like {line!r} after line {position} of"
        position = found + 1
    return ""


def _alike(shown: str, printed: str) -> bool:
    shown, printed = DURATION.sub("#", shown), DURATION.sub("#", printed)
    pattern = ".*".join(f"({NUMBER})".join(map(re.escape, re.split(NUMBER, part))) for part in shown.split("..."))
    if not (match := re.fullmatch(pattern, printed)):
        return False
    values = [float(number.replace(",", "")) for number in re.findall(NUMBER, shown)]
    return all(
        abs(value - float(found.replace(",", ""))) <= max(value, 1e-9) / 5
        for value, found in zip(values, match.groups(), strict=True)
    )


def check(block: Block, shell: Shell, printed: str) -> str:
    """Do what a block says; returns what it printed."""
    if block.file:
        file = shell.folder / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
        return ""
    if block.language == "text":
        assert (problem := agrees(block.text, printed)) == "", f"{problem}\n{printed}"
        return printed
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
        return ""
    if block.language == "yaml":
        check_config(block.text, shell.folder / "block.yaml")
        return ""
    expected = 2 if block.comment == "fails" else 0
    if block.language == "bash":
        code, output = shell.run("bash", "-euo", "pipefail", "-c", block.text)
    else:
        assert block.language == "python", (
            f"a block of {block.language!r}: name its file above it, or say why it is not run"
        )
        code, output = shell.run("python", "-", text=block.text)
    assert code == expected, output
    return output


def check_config(text: str, file: Path) -> None:
    """A config, or some keys of one, has keys and values that a training or a sampling run knows."""
    assert isinstance(yaml.safe_load(text), dict)
    file.write_text(text)
    problems = []
    for load in (load_train_config, load_sample_config):
        try:
            load(str(file), {"model": "tiny", "dataset": ["arithmetic"]}, [])
        except UserError as error:
            problems.append(str(error))
    assert len(problems) < 2, problems


@pytest.mark.docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_page_is_true(page: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shell = Shell(tmp_path, tmp_path_factory.getbasetemp().parent / "quickstart")
    printed = ""
    for block in blocks(page):
        if block.comment.startswith("not run:"):
            assert len(block.comment) > len("not run: why")
            continue
        try:
            printed = check(block, shell, printed)
        except Exception as error:
            raise AssertionError(f"{page.relative_to(ROOT)}:{block.line}: {error}") from error


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "plugin_api.md").read_text()
    assert [name for name in swiftplug.plugin.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_there_is_a_page_for_each_kind() -> None:
    assert {page.stem for page in (ROOT / "docs" / "kinds").glob("*.md")} == {*KINDS}


@pytest.mark.parametrize("tool", ["ms_swift", "llama_factory", "trl"])
def test_what_options_of_other_tools_are_here(tool: str) -> None:
    page = (ROOT / "docs" / "how_to" / f"from_{tool}.md").read_text()
    keys = {**keys_of(SampleConfig), **keys_of(TrainConfig)}
    options = {kind: plugin_options(kind) for kind in ("task", "tuner", "optimizer")}
    for theirs, ours in re.findall(r"^\| (`.+?) \| (.+?) \|$", page, re.MULTILINE):
        named = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)?)`", ours) if "." in name or name in keys]
        for name in named:
            section, _, option = name.partition(".")
            assert name in keys or option in options.get(section, ()), f"{name}: no key and no option of a plugin"
        for name in re.findall(r"`-{0,2}([a-z_]+)`", theirs):
            suggested = counterparts(name, keys_of(TrainConfig)) or counterparts(name, keys_of(SampleConfig))
            suggested = [it for it in suggested if not it.startswith("training.")]
            assert not suggested or not named or {*suggested} & {*named}, f"{name}: the error suggests {suggested}"


def plugin_options(kind: str) -> set[str]:
    """The options of the built-in plugins of a kind."""
    return {option.name for found in Registry.discover().found(kind) for option in describe(found).options}

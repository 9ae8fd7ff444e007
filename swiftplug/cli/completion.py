"""Completion of command lines in bash, zsh and fish: commands, options, plugins, keys of a config, files, runs.

The shell runs `swiftplug` at each TAB with the line in an environment variable. Typer finds out which parameter is
being typed; here is what its values may be.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from swiftplug.errors import UserError
from swiftplug.plugin.registry import KINDS, FoundPlugin, Registry
from swiftplug.plugin.registry.definitions import read_options

if TYPE_CHECKING:
    from swiftplug.config.keys import Key

INSTRUCTION = "_SWIFTPLUG_COMPLETE"  # `complete_bash` and so on
LINE = "_SWIFTPLUG_LINE"  # the line up to the cursor

SCRIPTS = {
    "bash": f"""\
_swiftplug_completion() {{
    local IFS=$'\\n'
    COMPREPLY=( $({LINE}="${{COMP_LINE:0:COMP_POINT}}" {INSTRUCTION}=complete_bash "$1" 2>/dev/null) )
    if [[ "${{COMPREPLY[0]}}" == *[=./:] ]]; then compopt -o nospace; fi
}}

complete -o nosort -F _swiftplug_completion swiftplug
""",
    "zsh": f"""\
#compdef swiftplug

_swiftplug_completion() {{
    eval "$({LINE}="${{(j: :)words[1,CURRENT]}}" {INSTRUCTION}=complete_zsh "${{words[1]}}" 2>/dev/null)"
}}

if [[ "$funcstack[1]" == _swiftplug ]]; then
    _swiftplug_completion "$@"
else
    compdef _swiftplug_completion swiftplug
fi
""",
    "fish": f"""\
complete --command swiftplug --no-files --arguments \
"(env {LINE}=(commandline -cp | string collect) {INSTRUCTION}=complete_fish swiftplug 2>/dev/null)"
""",
}

_OPEN = ("=", ".", "/", ":")  # a candidate that ends in one of these is to be typed on
_DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz")
_CONFIG_FILES = (".yaml", ".yml")


class Candidate(NamedTuple):
    """What may stand where the cursor is, and what it means."""

    value: str
    help: str = ""


def install(shell: str) -> Path:
    """Let a shell complete `swiftplug` from its next start on, and return the file that was written.

    Raises:
        UserError: The shell's files cannot be written.
    """
    try:
        path = Path(_typer().install(shell, "swiftplug", INSTRUCTION)[1])
        path.write_text(SCRIPTS[shell], encoding="utf-8")
    except OSError as error:
        raise UserError(f"--install-completion {shell}: {error.filename}: {error.strerror}") from error
    return path


def _typer() -> Any:
    """Typer's module for completion, whose parts mypy does not take for public."""
    return import_module("typer.completion")


def complete(app: Any, instruction: str, line: str) -> str:
    """What the script of a shell reads.

    Args:
        app: The root command.
        instruction: `complete_bash`, `complete_zsh` or `complete_fish`.
        line: The line up to the cursor.
    """
    shell_completion = _typer().shell_completion
    shell = instruction.partition("_")[2]
    words = shell_completion.split_arg_string(line)[1:]
    typed = words.pop() if words and not line[-1:].isspace() else ""
    base = shell_completion.ShellComplete
    # It finds the parameter; the methods that a shell of typer's has are not called for that.
    finder: Any = type("_Finder", (base,), dict.fromkeys(base.__abstractmethods__))
    items = finder(app, {}, "swiftplug", INSTRUCTION).get_completions(words, typed)
    option = f"{typed.partition('=')[0]}=" if typed.startswith("--") and "=" in typed else ""
    found = [Candidate(f"{option}{item.value}", " ".join((item.help or "").split())) for item in items]
    return _WRITERS[shell](found, typed)


def _write_bash(candidates: Iterable[Candidate], typed: str) -> str:
    """Bash takes `=` and `:` for the ends of words, and replaces only what follows the last of them."""
    done = max(typed.rfind("="), typed.rfind(":")) + 1
    return "\n".join(re.sub(r"([^\w@%+=:,./~#-])", r"\\\1", each.value[done:]) for each in candidates)


def _write_zsh(candidates: Iterable[Candidate], typed: str) -> str:
    shut: list[str] = []
    still_open: list[str] = []
    for value, help in candidates:
        text = "".join(
            [value.replace("\\", "\\\\").replace(":", r"\:"), ":" if help else "", help.replace("\\", "\\\\")]
        )
        (still_open if value.endswith(_OPEN) else shut).append(shlex.quote(text))
    arrays = f"local -a shut open; shut=({' '.join(shut)}); open=({' '.join(still_open)});"
    return f"{arrays} _describe '' shut; _describe '' open -S ''"


def _write_fish(candidates: Iterable[Candidate], typed: str) -> str:
    return "\n".join(f"{value}\t{help}" for value, help in candidates)


_WRITERS: dict[str, Callable[[Iterable[Candidate], str], str]] = {
    "bash": _write_bash,
    "zsh": _write_zsh,
    "fish": _write_fish,
}


def values_of(parameter: Any, keys: Mapping[str, "Key"], given: Mapping[str, Any], typed: str) -> list[Any]:
    """The values that a parameter of a command may have.

    Args:
        parameter: The parameter.
        keys: The keys of the config that the command's options set; empty if it has none.
        given: The values of the parameters so far.
        typed: The beginning of the value.

    Returns:
        Typer's items for completion.
    """
    metavar = parameter.metavar or ""
    key = next((key for key in keys.values() if key.panel and key.flag in parameter.opts), None)
    if "--set" in parameter.opts and keys:
        found = _settings(keys, given, typed)
    elif key is not None and key.is_plugin:
        found = _plugins(typed, _kind(key))
    elif "|" in metavar:
        found = map(Candidate, metavar.split("|"))
    elif metavar in _BY_METAVAR:
        found = _BY_METAVAR[metavar](typed)
    elif metavar.startswith("FILE"):
        found = _paths(typed, (Path(metavar).suffix,))
    else:
        found = iter(())
    item = _typer().shell_completion.CompletionItem
    return [item(value, help=help) for value, help in found if value.startswith(typed)]


def _plugins(typed: str, kind: str | None = None) -> Iterator[Candidate]:
    """The plugins of a kind, or of all kinds; a path where a value of the kind may be one too."""
    before = typed[: typed.rfind("+") + 1] if kind == "loss_scale" else ""
    for found in Registry.discover().found(kind):
        yield Candidate(f"{before}{found.qualified_name if ':' in typed else found.name}", found.summary or "")
    if kind in ("dataset", "model", "orm", "prm"):
        yield from _paths(typed, _DATA_FILES if kind == "dataset" else ())


def _kind(key: "Key") -> str:
    return next((kind.name for kind in KINDS.values() if kind.key == key.name), "dataset")  # of eval_dataset


def _settings(keys: Mapping[str, "Key"], given: Mapping[str, Any], typed: str) -> Iterator[Candidate]:
    """The keys, or once a key is typed the values, of `--set KEY=VALUE`."""
    path, equals, _ = typed.partition("=")
    section, dot, rest = path.partition(".")
    key = keys.get(section)
    if equals:
        yield from (Candidate(f"{path}={value}") for value in _values(keys, given, path))
    elif not dot:
        for each in keys.values():
            if "." not in each.name:
                if not each.is_section and each.name != "training":
                    yield Candidate(f"{each.name}=", each.help)
                if each.is_section or each.is_plugin or each.name == "training":
                    yield Candidate(f"{each.name}.", each.help)
    elif section == "training" and "training" in keys:
        from swiftplug.config.counterparts import training_fields

        yield from (Candidate(f"training.{name}=") for name in sorted(training_fields()))
    elif key is not None and key.is_plugin:
        for place, found in _chosen(key, given):
            if key.is_list and "." not in rest:
                yield Candidate(f"{place}.", found.summary or "")
            else:
                yield from (Candidate(f"{place}.{option.name}=", option.help) for option in read_options(found))
    else:
        yield from (
            Candidate(f"{each.name}=", each.help) for each in keys.values() if each.name.startswith(f"{section}.")
        )


def _values(keys: Mapping[str, "Key"], given: Mapping[str, Any], path: str) -> Iterator[str]:
    """The values of a key if there are few: choices, or true and false; the names of plugins."""
    key = keys.get(path)
    if key is not None and key.is_plugin:
        yield from (candidate.value for candidate in _plugins("", _kind(key)))
    elif key is not None:
        yield from key.choices or (("true", "false") if key.type is bool else ())
    elif (chooser := keys.get(path.partition(".")[0])) is not None and chooser.is_plugin:
        for place, found in _chosen(chooser, given):
            for option in read_options(found):
                if path == f"{place}.{option.name}":
                    for part in option.type.split(" | "):
                        yield from ("true", "false") if part == "bool" else (part.strip('"'),) if '"' in part else ()


def _chosen(key: "Key", given: Mapping[str, Any]) -> Iterator[tuple[str, FoundPlugin]]:
    """The plugins that the line, its config or the default choose for a key, and where `--set` has their options."""
    kind = _kind(key)
    value = given.get(key.name) or _in_config(given.get("path"), key.name)
    if not value and key.default:
        value = key.default.name
    registry = Registry.discover()
    for each in value if isinstance(value, list | tuple) else [value]:
        name = each.get("name") if isinstance(each, dict) else each
        for single in str(name or "").split("+") if kind == "loss_scale" else [str(name or "")]:
            try:
                [found, *_] = registry.lookup(single, kind)
            except UserError:
                continue
            yield f"{key.name}.{single}" if key.is_list else key.name, found


def _in_config(path: str | None, name: str) -> Any:
    """What a config file, or that of a run, gives a key."""
    from swiftplug.config.yaml_file import read_config

    if not path:
        return None
    file = Path(path).expanduser()
    try:
        return read_config(str(file / "config.yaml" if file.is_dir() else file))[0].get(name)
    except UserError:
        return None


def _paths(typed: str, suffixes: tuple[str, ...]) -> Iterator[Candidate]:
    """Folders, and files with one of these endings; a folder of a run or a model is complete as it is."""
    above = typed[: typed.rfind("/") + 1]
    try:
        entries = sorted(Path(above or ".").expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not typed[len(above) :].startswith("."):
            continue
        if entry.is_dir():
            is_run = any((entry / name).is_file() for name in ("config.yaml", "config.json", "adapter_config.json"))
            yield Candidate(f"{above}{entry.name}{'' if is_run else '/'}")
        elif entry.name.endswith(suffixes):
            yield Candidate(f"{above}{entry.name}")


_BY_METAVAR: dict[str, Callable[[str], Iterator[Candidate]]] = {
    "CONFIG": partial(_paths, suffixes=_CONFIG_FILES),
    "RUN": partial(_paths, suffixes=()),
    "FOLDER": partial(_paths, suffixes=()),
    "PACKAGE": partial(_paths, suffixes=(".whl", ".tar.gz")),
    "DATASET": partial(_plugins, kind="dataset"),
    "KIND": lambda typed: map(Candidate, KINDS),
    "NAME": _plugins,
}

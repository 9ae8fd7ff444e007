"""`swiftplug version`: what a bug report needs to say."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import importlib_metadata
import typer

from swiftplug import __version__
from swiftplug.cli.process import loading_libraries
from swiftplug.plugin.registry import BUILT_IN
from swiftplug.plugin.registry.finder import find_installed, missing_requirements
from swiftplug.processes import silence_libraries

_LIBRARIES = ("transformers", "accelerate", "peft", "datasets", "tokenizers", "huggingface-hub", "safetensors")
_ALSO = ("trl", "deepspeed", "flash-attn", "liger-kernel", "vllm", "bitsandbytes")  # shown where they are installed
_FOR_DEVELOPERS = ("dev", "docs")  # extras


def version(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", metavar="", help="Also the system, libraries, devices and plugins, to paste into a bug report."
        ),
    ] = False,
) -> None:
    """Show the version; with --verbose, all that a bug report needs, as Markdown.

    Nothing in it is secret: no names of users or of machines, and no tokens.

    Example: swiftplug version --verbose
    """
    if not verbose:
        print(f"swiftplug {__version__}")
        return
    silence_libraries()
    facts = [*_facts()]
    print("\n".join(f"- {name}: {fact}" for name, fact in facts))


def _facts() -> Iterator[tuple[str, str]]:
    yield "swiftplug", __version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", platform.platform()
    yield from _torch()
    for name in (*_LIBRARIES, *_ALSO):
        with suppress(importlib_metadata.PackageNotFoundError):
            yield name, importlib_metadata.version(name)
    extras = importlib_metadata.metadata(BUILT_IN).get_all("Provides-Extra") or []
    missing = {extra: missing_requirements(BUILT_IN, (extra,)) for extra in extras if extra not in _FOR_DEVELOPERS}
    yield "extras", ", ".join(extra for extra, names in missing.items() if not names) or "none"
    yield "missing extras", ", ".join(extra for extra, names in missing.items() if names) or "none"
    distributions = {found.distribution: found.version for found in find_installed() if found.distribution != BUILT_IN}
    yield "plugins", ", ".join(f"{name} {number}" for name, number in sorted(distributions.items())) or "built-in only"
    if "SWIFTPLUG_PLUGINS" in os.environ:
        yield "SWIFTPLUG_PLUGINS", os.environ["SWIFTPLUG_PLUGINS"] or "(empty: built-in only)"
    cache = os.environ.get("SWIFTPLUG_CACHE")
    yield "cache of datasets", _without_home(cache) if cache else "~/.cache/swiftplug/data"
    kind = "uv tool" if Path(sys.prefix, "uv-receipt.toml").is_file() else "virtual environment"
    kind = "pipx" if Path(sys.prefix, "pipx_metadata.json").is_file() else kind
    yield "installed in", kind if sys.prefix != sys.base_prefix else "the system's Python"


def _without_home(path: str) -> str:
    """A path without the name of the user."""
    home = str(Path.home())
    return f"~{path[len(home) :]}" if path == home or path.startswith(f"{home}{os.sep}") else path


def _torch() -> Iterator[tuple[str, str]]:
    """The build of torch, and the devices that it sees."""
    if find_spec("torch") is None:
        yield "torch", "not installed"
        return
    try:
        with loading_libraries():
            import torch
    except Exception as error:  # a broken build is what the report is about
        # The path of a library that does not load is in it.
        reason = " ".join(str(error).replace(f"{Path.home()}{os.sep}", f"~{os.sep}").split())
        yield "torch", f"{importlib_metadata.version('torch')}, which fails: {reason}"
        return
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    yield "torch", f"{torch.__version__}, built for {built_for}"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            yield (
                f"device {number}",
                f"{device.name}, {device.total_memory / 2**30:.0f} GiB, sm_{device.major}{device.minor}",
            )
    elif torch.backends.mps.is_available():
        yield "device", "Apple GPU (MPS)"
    else:
        yield "device", f"CPU with {os.cpu_count()} cores"
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=10)
            if done.returncode == 0 and done.stdout.strip():
                yield "NVIDIA driver", done.stdout.split()[0]

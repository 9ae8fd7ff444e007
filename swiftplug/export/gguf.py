"""Converts an exported folder with llama.cpp's own converter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from swiftplug.errors import UserError

SCRIPT = "convert_hf_to_gguf.py"
PLACE = "LLAMA_CPP"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")
_LAST_LINES = 3


class Converter(NamedTuple):
    """llama.cpp's `convert_hf_to_gguf.py`.

    Attributes:
        script: The script.
        outtype: The type of the weights in the GGUF file, as the script calls it.
    """

    script: Path
    outtype: str

    @classmethod
    def find(cls, llama_cpp: str | None, outtype: str) -> "Converter":
        """Find the script: in the folder of llama.cpp that is given, else in `$LLAMA_CPP`, else on the PATH.

        Args:
            llama_cpp: The script, or the folder with it; None if none is given.
            outtype: One of `OUTTYPES`.

        Raises:
            UserError: It is not there.
        """
        named = llama_cpp or os.environ.get(PLACE)
        if named:
            place = Path(named).expanduser()
            script = place if place.is_file() else place / SCRIPT
            if not script.is_file():
                where = "--llama-cpp" if llama_cpp else f"${PLACE}"
                raise UserError(f"{where} {named}: has no {SCRIPT}; name the folder of a checkout of llama.cpp")
            return cls(script, outtype)
        found = shutil.which(SCRIPT)
        if found is None:
            raise UserError(
                f"--gguf: needs llama.cpp's {SCRIPT}, which is not on the PATH; git clone "
                "https://github.com/ggml-org/llama.cpp, pip install gguf sentencepiece, and name the folder with "
                f"--llama-cpp or ${PLACE}"
            )
        return cls(Path(found), outtype)

    def convert(self, folder: Path, name: str) -> str:
        """Write `NAME-OUTTYPE.gguf` into the folder of a model.

        Args:
            folder: The folder of the model.
            name: What the model is called, in the file too.

        Returns:
            The name of the file.

        Raises:
            UserError: The converter failed; its last lines are in the message.
        """
        file = f"{name}-{self.outtype}.gguf"
        command = [sys.executable, str(self.script), str(folder), "--outfile", str(folder / file)]
        command += ["--outtype", self.outtype, "--model-name", name]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if ended.returncode or not (folder / file).is_file():
            lines = [line.strip() for line in (ended.stderr or ended.stdout).splitlines() if line.strip()]
            hint = "; pip install gguf sentencepiece" if "ModuleNotFoundError" in ended.stderr else ""
            raise UserError(f"--gguf: {self.script} failed: {' | '.join(lines[-_LAST_LINES:]) or 'no message'}{hint}")
        return file

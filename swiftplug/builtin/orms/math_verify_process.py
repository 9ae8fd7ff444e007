"""Compares statements for `MathVerify`: one pair a line on standard input, as JSON, one verdict a line on its output.

It ends with its input, or with a comparison that takes too long: a watchdog outside the interpreter ends it even in
the midst of a power of two long numbers, which no signal or exception can interrupt.
"""

import faulthandler
import json
import logging
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from math_verify import parse, verify


def main(timeout: float) -> None:
    """Answer until the input ends.

    Args:
        timeout: Seconds that one comparison may take.
    """
    logging.disable()
    verdicts = sys.stdout
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = nowhere  # the parser prints to it
        print("ready", file=verdicts, flush=True)
        for line in sys.stdin:
            found, expected = json.loads(line)
            faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
            verdict = verify(_read(*expected), _read(*found), timeout_seconds=None)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(verdict), file=verdicts, flush=True)


@lru_cache(256)
def _read(text: str, is_latex: bool) -> list[Any]:
    """The expression that a statement is; empty where none is found."""
    found = [] if is_latex else parse(text, parsing_timeout=None)
    return found or parse(rf"\boxed{{{text}}}", parsing_timeout=None)


if __name__ == "__main__":
    main(float(sys.argv[1]))

"""The process that compares statements for `MathVerify`.

Standard input has one pair of statements per line, as JSON; standard output gets one verdict per line. The process ends
with its input, or when a comparison takes too long: a watchdog outside the interpreter ends it even during a power of
two long numbers, which no signal or exception can interrupt.
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
    """Compare statements until the input ends.

    Args:
        timeout: Seconds that one comparison may take.
    """
    logging.disable()
    verdicts = sys.stdout
    with Path(os.devnull).open("w") as devnull:
        sys.stdout = devnull  # the parser prints to it
        print("ready", file=verdicts, flush=True)
        for line in sys.stdin:
            found, expected = json.loads(line)
            faulthandler.dump_traceback_later(timeout, exit=True, file=devnull)
            verdict = verify(_parse_statement(*expected), _parse_statement(*found), timeout_seconds=None)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(verdict), file=verdicts, flush=True)


@lru_cache(256)
def _parse_statement(text: str, is_latex: bool) -> list[Any]:
    """The expressions in a statement; empty if none is found."""
    found = [] if is_latex else parse(text, parsing_timeout=None)
    return found or parse(rf"\boxed{{{text}}}", parsing_timeout=None)


if __name__ == "__main__":
    main(float(sys.argv[1]))

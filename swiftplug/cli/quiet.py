"""What the libraries underneath say of themselves, so that what the user reads is about their run."""

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Silence advice and deprecations of the libraries; call it before they are imported.

    What the user's environment says already (`TRANSFORMERS_VERBOSITY`, `PYTHONWARNINGS`...) stays as it is.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings(
            "ignore", category=UserWarning, module=r"(torch|transformers|accelerate|peft|datasets)\b"
        )


def settle_tokenizer_threads(num_proc: int) -> None:
    """Let tokenizers use all cores, unless several processes encode, in which their threads would not survive."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if num_proc == 1 else "false")

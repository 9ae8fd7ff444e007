"""`swiftplug chat`."""

from typing import Annotated

from typer import Argument

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import RunRequest, takes_options
from swiftplug.config.evaluation import KEYS
from swiftplug.config.keys import keys_of
from swiftplug.config.schema import SampleConfig

_NAMES = ("system", "engine", "tools", "plugins.files", "temperature", "top_p", "top_k", "max_new_tokens")
_KEYS = {name: key for name, key in keys_of(SampleConfig).items() if name in _NAMES} | {"engine": KEYS["engine"]}


@takes_options(_KEYS, "seed=7 or dtype=float32")
def chat(
    request: RunRequest,
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN...",
            help="Folder of a run, or any model that sample takes. Several answer side by side.",
        ),
    ],
) -> None:
    """Talk with a trained model in the terminal, or with several side by side.

    Answers are streamed, with the run's chat template and tools format; system message and tools are those that all
    rows of the run have. /help shows the commands, such as /save FILE, which writes a row that train reads. Ctrl-C
    stops an answer, Ctrl-D ends. Without a terminal, each line of the input is a turn, and stdout has only answers.

    Example: swiftplug chat runs/first runs/second --temperature 0.7
    """
    from swiftplug.config.load import load_model_config

    system = request.options.pop("system")
    configs = [load_model_config(run, request.options, request.sets) for run in runs]
    prepare_process(debug=request.debug)
    with loading_libraries():
        from swiftplug.chat.chat import chat as talk

    talk(configs, system)

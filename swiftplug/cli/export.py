"""`swiftplug export`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from swiftplug.cli.process import loading_libraries, prepare_process
from swiftplug.cli.run_options import Debug, flag, set_option
from swiftplug.errors import UserError

_MODEL, _GGUF, _HUB = "Model", "GGUF", "Hub"


def export(
    run: Annotated[
        str,
        Argument(metavar="RUN", help="Folder of a training run, a checkpoint-N in it, or any model that sample takes."),
    ],
    to: Annotated[str, Option(metavar="DIR", help="Folder to write; it must not exist.", rich_help_panel=_MODEL)],
    no_merge: Annotated[
        bool, flag("--no-merge", "Write the adapter, and do not merge it into its base model.", _MODEL)
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Option(
            metavar="auto|float32|bfloat16|float16",
            help="Type of the weights; auto is that of the base model, or of what the run saved.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    gguf: Annotated[bool, flag("--gguf", "Also write a GGUF file, with llama.cpp's converter.", _GGUF)] = False,
    outtype: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"],
        Option(
            metavar="f32|f16|bf16|q8_0|tq1_0|tq2_0|auto",
            help="Type of the weights in the GGUF file; auto is the exported one.",
            rich_help_panel=_GGUF,
        ),
    ] = "auto",
    llama_cpp: Annotated[
        str | None,
        Option(
            metavar="DIR",
            help="Checkout of llama.cpp, or its convert_hf_to_gguf.py. [dim]\\[default: $LLAMA_CPP, else on the PATH]"
            "[/dim]",
            rich_help_panel=_GGUF,
        ),
    ] = None,
    push: Annotated[
        str | None, Option(metavar="ORG/NAME", help="Upload to this repository on the hub.", rich_help_panel=_HUB)
    ] = None,
    private: Annotated[bool, flag("--private", "Make a new repository private.", _HUB)] = False,
    plugin: Annotated[
        list[str] | None,
        Option(
            metavar="FILE.py", help="Load plugins, such as the run's tuner, from a Python file. Repeat for several."
        ),
    ] = None,
    sets: Annotated[list[str] | None, set_option("model_options.trust_remote_code=true")] = None,
    debug: Debug = False,
) -> None:
    """Write a trained model as a folder for other programs, and prove that it is the same model.

    The adapter is merged into its base model. The folder has weights as safetensors, tokenizer, chat template,
    generation config and a model card. It appears when plain Transformers has opened it and has computed the logits of
    the run.

    Example: swiftplug export runs/first --to first-merged --dtype bfloat16 --gguf --push my-org/first
    """
    from swiftplug.config.load import load_model_config
    from swiftplug.config.resume import run_folder_of
    from swiftplug.runs.folder import check_new_folder

    target, source = Path(to).expanduser(), run_folder_of(run) or Path(run).expanduser()
    check_new_folder(target, f"--to {to}")
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise UserError(f"--to {to}: is inside of {source}, which is exported; name a folder outside of it")
    for given, needs in ((private, push), (outtype != "auto" or llama_cpp, gguf)):
        if given and not needs:
            raise UserError(
                "--private: is for --push" if needs is push else "--outtype and --llama-cpp: are for --gguf"
            )
    if no_merge and gguf:
        raise UserError("--no-merge: a GGUF file holds a whole model; leave out --no-merge or --gguf")
    config = load_model_config(run, {"plugins.files": plugin}, sets or [])
    prepare_process(debug=debug)
    with loading_libraries():
        from swiftplug.export.export import export as write
        from swiftplug.export.gguf import Converter
        from swiftplug.export.hub import HubTarget

    write(
        config,
        target,
        merge=not no_merge,
        dtype=dtype,
        converter=Converter.find(llama_cpp, outtype) if gguf else None,
        hub=HubTarget(push, private) if push else None,
    )

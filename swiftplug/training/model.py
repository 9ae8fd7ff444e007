"""The model that a run trains: loaded, wrapped by the tuner, in the right precision, and fit for packed rows."""

from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from swiftplug.errors import UserError
from swiftplug.plugin import Rows
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.folder import KEPT_BASE, STAGED_BASE
from swiftplug.runs.model import autocast_dtype, end_where_trained, model_class
from swiftplug.training.online.values import add_value_head


def load_model_to_train(args: Arguments, checkpoint: Path | None) -> torch.nn.Module:
    """The base model, wrapped by the tuner anew or as a checkpoint has it.

    Raises:
        UserError: The tuner returned no model, or one without a parameter to train.
    """
    set_seed(args.config.seed)
    compute_dtype = autocast_dtype(args.training_args)
    # In mixed precision the checkpoint's own type is kept until the tuner has decided what trains.
    base = args.base.load_model(torch.float32 if compute_dtype == torch.float32 else None)
    if args.task.rows is not Rows.TEXT and args.task.head == "language":
        end_where_trained(base, args.load_chat(base).end_ids)
    tuner = args.plugins.one("tuner")
    if isinstance(base, PeftModel):
        raise UserError("model: has an adapter that PEFT cannot merge; to train it further, use its tuner and options")
    place = _keep_base(args, base, is_new=checkpoint is None)
    if source := checkpoint or args.continued:
        model = tuner.bound.from_pretrained(base, str(source), is_trainable=True)
    else:
        model = tuner.bound.prepare_model(args, base)
    if isinstance(model, PeftModel) and place:
        for config in model.peft_config.values():  # PEFT knows no path that is relative to its own folder
            config.base_model_name_or_path, config.revision = place, args.base.config.model_options.revision
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{tuner.found} returned a {type(model).__name__}; expected a torch.nn.Module")
    set_precision(model, compute_dtype)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{tuner.found} leaves no parameter to train")
    if getattr(args.task, "needs_values", False):
        add_value_head(args, model, checkpoint)
    return model


def _keep_base(args: Arguments, base: torch.nn.Module, *, is_new: bool) -> str | None:
    """Keep a copy of the base model for the run's folder, if the tuner saves less and there is no other to load.

    A new one is written beside its place: what is there may be of a run that this one overwrites once it has begun.

    Returns:
        The folder or hub id of the base model; None if plain Transformers could load no copy of it.
    """
    kept = Path(args.training_args.output_dir).expanduser() / KEPT_BASE
    place, is_main = args.base_folder, args.training_args.should_save
    if place is not None or args.plugins.one("tuner").bound.saves_whole_model:
        return place
    if not isinstance(base, PreTrainedModel):
        return None
    if model_class(base.config, args.task.head) is not type(base) and not hasattr(base.config, "auto_map"):
        return None
    if is_main and (is_new or not kept.is_dir()):
        staging = kept.with_name(STAGED_BASE)
        base.save_pretrained(staging)
        args.load_tokenizer().save_pretrained(staging)
    return str(kept.resolve())


def set_precision(model: torch.nn.Module, compute_dtype: torch.dtype) -> None:
    """Make trainable weights float32, and frozen ones the type of autocast; quantized weights stay as they are."""
    quantized = getattr(model, "is_quantized", False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
        elif parameter.is_floating_point() and not quantized:
            parameter.data = parameter.data.to(compute_dtype)


def check_packing(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Prove that a model keeps packed examples apart, by running two of them packed and alone.

    Raises:
        UserError: An example's logits change when another stands before it.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(1, 100, (1, length), generator=generator) for length in (9, 7))
    alone = _logits(model, accelerator, second)
    packed = _logits(model, accelerator, torch.cat([first, second], dim=1), restart=first.shape[1])
    difference = (packed[:, first.shape[1] :] - alone).abs().max() / alone.std().clamp(min=1e-12)
    # Half precision rounds differently when rows are longer; a leak changes the logits by far more.
    tolerance = 1e-3 if accelerator.mixed_precision == "no" else 0.1
    if difference > tolerance:
        raise UserError(
            f"data.packing: {type(model).__name__} does not keep packed examples apart (the second of two differs by "
            f"{difference:.2g} standard deviations from what it gives alone); set packing: false"
        )


def _logits(model: torch.nn.Module, accelerator: Accelerator, ids: torch.Tensor, restart: int = 0) -> torch.Tensor:
    """The logits of a row whose position ids start again at `restart`."""
    length = ids.shape[1]
    positions = torch.arange(length)
    positions[restart:] -= restart
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), accelerator.autocast():
            output = model(
                input_ids=ids.to(accelerator.device),
                position_ids=positions[None].to(accelerator.device),
                use_cache=False,
            )
    finally:
        model.train(was_training)
    logits: torch.Tensor = output.logits[:, -length:].float()
    return logits

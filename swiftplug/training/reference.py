"""The reference model of a preference objective: the model that a run starts from, which does not train.

It is the model in training with its tuner disabled, where that computes what the base model does; else a second copy;
or its log-probabilities are computed once, before the model to train is loaded, and kept beside the encoded rows.
"""

import hashlib
import json
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets

from swiftplug import __version__
from swiftplug.data.batching import REFERENCE_LOGPS, Collator
from swiftplug.data.encode import SECOND
from swiftplug.data.prepare import PreparedData, code_hash
from swiftplug.data.store import EncodedStore
from swiftplug.plugin import Tuner
from swiftplug.runs.arguments import Arguments
from swiftplug.runs.console import RunProgress
from swiftplug.runs.model import autocast_dtype
from swiftplug.training.head import LabelledForward
from swiftplug.training.loss import model_inputs
from swiftplug.training.model import set_precision

# Tokens in a batch, with padding: enough to keep a device busy, and little beside a model, as nothing is kept of them.
BATCH_TOKENS = 8192

_TOKENS = ("input_ids", "labels", f"{SECOND}input_ids", f"{SECOND}labels")


def load_reference(args: Arguments, model: torch.nn.Module) -> torch.nn.Module | None:
    """A second copy of the model that the run starts from, if one is needed.

    Args:
        args: The run's arguments.
        model: The model to train. With its tuner disabled it is the reference itself, unless the tuner cannot be, or
            the run starts from an adapter that it trains further.
    """
    if not args.task.needs_reference or args.config.reference == "precompute":
        return None
    if args.continued is None and args.plugins.one("tuner").bound.disabled(model) is not None:
        return None
    return _load_copy(args)


def describe_reference(args: Arguments, copy: torch.nn.Module | None) -> str:
    """What the reference of a run is, once its model is loaded.

    Args:
        args: The run's arguments, with a task that needs a reference.
        copy: What `load_reference` returned.
    """
    if copy is not None:
        tensors = {id(tensor): tensor for tensor in [*copy.parameters(), *copy.buffers()]}.values()
        megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
        return f"{_COPY}, {megabytes:,.{0 if megabytes > 10 else 1}f} MB"
    return _PRECOMPUTED if args.config.reference == "precompute" else _DISABLED


def planned_reference(args: Arguments) -> str:
    """The same, as far as it is known before a model is loaded."""
    if args.config.reference == "precompute":
        return _PRECOMPUTED
    tuner = args.plugins.one("tuner").bound.tuner
    if args.continued is not None or getattr(tuner, "disabled", Tuner.disabled) is Tuner.disabled:
        return _COPY
    return f"{_DISABLED}; where that is not the model that the run starts from, {_COPY}"


_COPY = "a second copy of the model"
_DISABLED = "the model with its tuner disabled"
_PRECOMPUTED = "log-probabilities that are computed once, before training"


def add_reference_logps(args: Arguments, data: PreparedData, progress: RunProgress) -> PreparedData:
    """Add `reference_logps` to the rows of both splits: a float32 for each conversation.

    They are computed by all processes, and stored under a key that covers the rows, the weights of the reference and
    how it computes; a later run, or this one resumed, reads them.
    """
    with progress.start("loading the reference"):
        reference = _load_copy(args)
        computed_by = _hash_of_model(args, reference)
    store = EncodedStore(args.config.data.cache_dir)

    def extended(rows: Dataset) -> Dataset:
        key = f"{_hash_of_rows(rows)}-{computed_by}"
        logps: np.ndarray | None = None
        if any(gather_object([store.find(key) is None])):
            logps = _reference_logps(args, reference, rows, progress)

        def record_batches(_: Any) -> Generator[pa.RecordBatch, None, None]:
            assert logps is not None
            values = pa.FixedSizeListArray.from_arrays(pa.array(logps.reshape(-1)), logps.shape[1])
            yield pa.RecordBatch.from_pydict({REFERENCE_LOGPS: values.cast(pa.list_(pa.float32()))})

        columns = [rows.with_format(None), store.get(key, record_batches).examples]
        return concatenate_datasets(columns, axis=1).with_format("numpy")

    return data._replace(train=extended(data.train), eval=data.eval and extended(data.eval))


def _load_copy(args: Arguments) -> torch.nn.Module:
    """The model that the run starts from, frozen, in the precision in which the run computes."""
    compute_dtype = autocast_dtype(args.training_args)
    model = args.load_model(torch.float32 if compute_dtype == torch.float32 else None).requires_grad_(False)
    set_precision(model, compute_dtype)
    return model if getattr(model, "hf_device_map", None) else model.to(args.training_args.device)


@torch.no_grad()
def _reference_logps(args: Arguments, reference: torch.nn.Module, rows: Dataset, progress: RunProgress) -> np.ndarray:
    """The `(R, C)` log-probabilities of R rows with C conversations each."""
    arguments, collate = args.training_args, Collator(args.load_tokenizer().pad_token_id)
    device, dtype = arguments.device, autocast_dtype(arguments)
    forward = LabelledForward(reference, arguments)
    conversations = 1 + (f"{SECOND}labels" in rows.column_names)
    mine = list(_batches(np.asarray(rows["length"][:]), conversations))[arguments.process_index :: arguments.world_size]
    computed: list[tuple[np.ndarray, np.ndarray]] = []
    with (
        progress.start("computing the reference", "row", sum(map(len, mine))) as activity,
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        for indices in mine:
            batch = {name: value.to(device) for name, value in collate([rows[index] for index in indices]).items()}
            _, logps, _ = forward.sequence_logps(reference, model_inputs(batch), batch["labels"])
            computed.append((indices, logps.float().view(conversations, -1).T.cpu().numpy()))
            activity.advance(len(indices))
    gathered = gather_object(computed)
    order = np.concatenate([indices for indices, _ in gathered])
    return np.concatenate([logps for _, logps in gathered])[np.argsort(order)]


def _batches(lengths: np.ndarray, conversations: int) -> Iterator[np.ndarray]:
    """The indices of rows, the longest first, in batches of `BATCH_TOKENS` tokens at most, or of one row."""
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // (conversations * int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _hash_of_rows(rows: Dataset) -> str:
    """A hash of the tokens and labels of rows."""
    digest = hashlib.sha256()
    tokens = rows.select_columns([name for name in _TOKENS if name in rows.column_names])
    for table in tokens.with_format("arrow").iter(1024):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _hash_of_model(args: Arguments, model: torch.nn.Module) -> str:
    """A hash of the weights and config of a model, and of what else decides what it computes."""
    config = getattr(model, "config", None)
    facts = {
        "config": {**config.to_dict(), "_name_or_path": None} if config is not None else None,
        "options": args.config.model_options.model_dump(),
        "device": args.training_args.device.type,
        "dtype": str(autocast_dtype(args.training_args)),
        "code": code_hash("training/head.py", "training/chunked_losses.py", "training/reference.py"),
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

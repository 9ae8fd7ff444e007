"""What is overridden of Transformers' Trainer is still there, as it is overridden."""

import ast
import inspect
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

import swiftplug.training
from swiftplug.training.trainer import PlugTrainer

PRIVATE_METHODS = {
    *("_get_train_sampler", "_get_output_dir", "_save_rng_state", "_load_from_checkpoint", "_load_best_model"),
    "_save_optimizer_and_scheduler",
}
PRIVATE_ATTRIBUTES = {"_n_gpu"}
OVERRIDDEN = sorted(name for name in vars(PlugTrainer) if hasattr(Trainer, name) and not name.startswith("__"))


@pytest.mark.parametrize("name", ["__init__", *sorted(PRIVATE_METHODS | {*OVERRIDDEN})])
def test_an_overridden_method_takes_what_it_took(name: str) -> None:
    theirs = getattr(Trainer, name, None)
    assert theirs is not None, f"Trainer.{name} is gone, so what PlugTrainer.{name} does is never asked for"
    found, expected = (inspect.signature(method).parameters for method in (theirs, getattr(PlugTrainer, name)))
    if name == "__init__":
        used = {"model", "args", "processing_class", "compute_metrics", "preprocess_logits_for_metrics"}
        used |= {"train_dataset", "eval_dataset", "data_collator", "callbacks"}
        assert used <= found.keys()
        return
    shapes = [[(key, each.kind, each.default) for key, each in found.items()] for found in (found, expected)]
    assert shapes[0] == shapes[1], f"Trainer.{name} is now {inspect.signature(theirs)}"
    assert f"self.{name}" in inspect.getsource(Trainer), f"Trainer no longer calls {name}"


def test_no_other_private_name_is_used() -> None:
    assert {name for name in OVERRIDDEN if name.startswith("_")} == PRIVATE_METHODS
    used, own = set(), set()
    for file in Path(next(iter(swiftplug.training.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                (own if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self" else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    private -= {"_replace"}  # of a NamedTuple, and public
    assert private == PRIVATE_ATTRIBUTES
    arguments = TrainingArguments(use_cpu=True)
    for name in PRIVATE_ATTRIBUTES:
        assert f"self.{name} = " in inspect.getsource(TrainingArguments), f"TrainingArguments.{name} is gone"
    assert arguments.n_gpu == arguments._n_gpu


@pytest.mark.parametrize("name", ["model_accepts_loss_kwargs", "current_gradient_accumulation_steps"])
def test_an_attribute_that_is_set_or_read_is_still_one(name: str) -> None:
    assert f"self.{name} = " in inspect.getsource(Trainer)

"""What is said of a loss, an optimizer, a tuner or a callback that does not do what its contract says."""

from pathlib import Path
from typing import Any

import pytest

from swiftplug.errors import UserError

BAD = """
import torch
from transformers import TrainerCallback
from swiftplug.plugin import register_callback, register_loss_func, register_loss_scale, register_model
from swiftplug.plugin import register_optimizer, register_tuner, LossScale, TokenLoss, Tuner

@register_loss_func("nan")
def nan(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum() * float("nan")

@register_loss_func("vector")
def vector(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum(dim=(1, 2))

@register_loss_func("number")
def number(outputs, labels, num_items_in_batch=None):
    return 0.5

@register_loss_func("detached")
def detached(outputs, labels, num_items_in_batch=None):
    return outputs.logits.sum().detach()

@register_loss_func("one_number")
class OneNumber(TokenLoss):
    def token_loss(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets)

@register_loss_func("raises")
def raises(outputs, labels, num_items_in_batch=None):
    raise KeyError("surprise")

@register_optimizer("alone")
def alone(args, model, dataset):
    return torch.optim.SGD(model.parameters(), lr=0.1)

@register_tuner("nothing")
class Nothing(Tuner):
    @staticmethod
    def prepare_model(args, model):
        return model.requires_grad_(False)
    @staticmethod
    def save_pretrained(model, save_directory, state_dict=None, safe_serialization=True, **kwargs):
        pass
    @staticmethod
    def from_pretrained(model, model_id, **kwargs):
        return model

@register_loss_scale("trips")
class Trips(LossScale):
    def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        raise ValueError("no weight")

@register_model("lost")
def lost(args):
    raise OSError("no such weights")

@register_model("misspelt")
def misspelt(args):
    return args.no_such_argument

@register_callback("falls")
class Falls(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("fell over")
"""

CASES = {
    "nan": ({"loss": "nan"}, ["step 1: the loss 'file:nan' is nan", "as they were before this step"]),
    "vector": ({"loss": "vector"}, ["file:vector", "returned a tensor of shape (8,)", "expected a scalar tensor"]),
    "number": ({"loss": "number"}, ["file:number", "returned a float", "expected a scalar tensor"]),
    "detached": ({"loss": "detached"}, ["file:detached", "without a gradient"]),
    "one_number": ({"loss": "one_number"}, ["file:one_number", "shape () from token_loss", "one loss per position"]),
    "raises": ({"loss": "raises"}, ["raises", "raised KeyError: 'surprise'", "plugins_under_test.py:30"]),
    "alone": ({"optimizer": "alone"}, ["file:alone", "returned a SGD", "a pair (optimizer, scheduler)"]),
    "nothing": ({"tuner": "nothing"}, ["nothing", "leaves no parameter to train"]),
    "trips": ({"loss_scale": "trips"}, ["loss scale 'trips'", "raised ValueError: no weight"]),
    "lost": ({"model": "lost"}, ["model 'lost'", "raised OSError: no such weights"]),
    "misspelt": ({"model": "misspelt"}, ["model 'misspelt'", "raised AttributeError", "no_such_argument"]),
    "falls": ({"callbacks": ["falls"]}, ["falls", "raised RuntimeError: fell over"]),
}


@pytest.mark.parametrize(("options", "words"), CASES.values(), ids=CASES.keys())
def test_one_line_names_it(run: Any, tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        run("r", plugins=BAD, **options)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not list((tmp_path / "r").glob("*.safetensors"))


def test_weights_need_a_loss_that_takes_them(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no loss_scale, but tokens have weights other than 0 and 1"):
        run("r", ["loss_scale.words={It: 3}"], plugins=BAD, loss="nan", loss_scale="keywords")
    assert not (tmp_path / "r").exists()

"""Plugins for tests: an optimizer that writes the gradients of its first step to a file, and losses to compare with."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from swiftplug.plugin import LossScale, register_loss_func, register_loss_scale, register_metric, register_optimizer


class Recorder(torch.optim.SGD):
    def step(self, closure=None):
        path = os.environ["GRADIENTS"]
        if not Path(path).exists():
            trained = [p for p in self.param_groups[0]["params"] if p.requires_grad]
            save_file({str(i): p.grad.clone() for i, p in enumerate(trained)}, path)
        return super().step(closure)


@register_optimizer("recorder")
def recorder(args, model, dataset, *, lr: float = 0.0):
    return Recorder([p for p in model.parameters() if p.requires_grad], lr=lr), None


@register_loss_func("plain")
def plain(outputs, labels, loss_scale=None, num_items_in_batch=None):
    # The textbook form, on whole logits, by torch's own cross entropy.
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    if loss_scale is not None:
        losses = losses * loss_scale[:, 1:]
    return losses.sum() / num_items_in_batch


@register_loss_func("mean_only")
def mean_only(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].float().transpose(1, 2), labels[:, 1:])


@register_loss_scale("uneven")
class Uneven(LossScale):
    def get_loss_scale(self, context, context_type, is_last_round, **kwargs):
        parts, weights = super().get_loss_scale(context, context_type, is_last_round, **kwargs)
        if weights == [1.0] and len(context) > 4:
            return [context[:4], context[4:]], [0.25, 1.5]
        return parts, weights


@register_metric("letters")
class Letters:
    """Two answers in other places, or one that differs by a letter, give another number."""

    generate = True
    max_new_tokens = 6

    def __call__(self, predictions, references):
        letters = [ord(each) for answer in predictions for each in answer]
        return {"letters": sum(place * letter for place, letter in enumerate(letters))}

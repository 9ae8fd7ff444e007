"""The contract of an optimizer."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import get_scheduler

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.plugin.registry.returns import check_optimizer
from swiftplug.testing.inputs import on
from swiftplug.testing.tiny import TinyRun

_STEPS = 3  # before and after its state is saved

Weights = dict[str, torch.Tensor]


def check(plugin: LoadedPlugin) -> None:
    """Train a tiny model with it, save its state, and go on from there."""
    with TemporaryDirectory() as folder:
        try:
            _Training(plugin, Path(folder), "swiftplug:full").check()
        except UserError as refused:
            try:
                _Training(plugin, Path(folder), "swiftplug:lora").check()
            except UserError:
                raise refused from None


class _Training:
    """A model, and the optimizer and scheduler that a plugin makes for it.

    Args:
        plugin: The optimizer plugin.
        folder: A folder for what is saved.
        tuner: What prepares the model.
    """

    def __init__(self, plugin: LoadedPlugin, folder: Path, tuner: str) -> None:
        self.plugin = plugin
        self.folder = folder
        self.run = TinyRun(plugin, folder, tuner=tuner, max_steps=2 * _STEPS, warmup_steps=1)
        self.run.args.check_plugins()
        self.run.args.num_training_steps = 2 * _STEPS
        self.inputs = {name: self.run.batch()[name] for name in ("input_ids", "attention_mask", "labels")}

    def check(self) -> None:
        """Raise a ContractError if it breaks the contract."""
        model = self._model()
        optimizer, scheduler = self._make(model)
        if optimizer is None:  # Trainer's own
            return
        self._check_groups(model, optimizer)
        before = _weights(model)
        with on("optimizer.step(), which Trainer calls without a closure"):
            self._train(model, optimizer, scheduler)
        self._check_moved(model, before)

        _switch(optimizer, "eval")  # some keep other weights for use, and Trainer saves those
        with on("torch.save of the states of optimizer and scheduler"):
            torch.save([optimizer.state_dict(), scheduler.state_dict()], self.folder / "state.pt")
        saved = _weights(model)
        with on("training after a checkpoint"):
            self._train(model, optimizer, scheduler)

        resumed = self._model()
        resumed.load_state_dict(saved, strict=False)
        again, schedule = self._make(resumed)
        states = self._load()
        with on("load_state_dict"):
            again.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        with on("training after a resume"):
            self._train(resumed, again, schedule)
        for each in (optimizer, again):
            _switch(each, "eval")
        unbroken = _weights(model)
        for name, weight in _weights(resumed).items():
            if not torch.equal(weight, unbroken[name]):
                difference = (weight - unbroken[name]).abs().max()
                raise ContractError(
                    f"does not resume exactly: after {_STEPS} more steps {name} differs by {difference:.2g} from that "
                    "of an unbroken run; keep in self.state (and param_groups) all that a step uses, and let the "
                    "scheduler's state_dict have all of its own"
                )

    def _model(self) -> Any:
        """The model to train, of which a norm is frozen too."""
        model = self.run.model()
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if frozen := next((name for name in trained if name.endswith("norm.weight")), None):
            model.get_parameter(frozen).requires_grad_(False)
        return model.train()

    def _make(self, model: Any) -> Any:
        optimizer, scheduler = check_optimizer(self.plugin.bound(self.run.args, model, self.run.data.train))
        if optimizer is not None and scheduler is None:
            with on("the scheduler that Trainer makes"):
                scheduler = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=2 * _STEPS)
        return optimizer, scheduler

    def _check_groups(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
        taken = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if left_out := [name for key, name in names.items() if key not in taken]:
            raise ContractError(
                f"leaves out {len(left_out)} of {len(names)} parameters that train, such as {left_out[0]}: they would "
                "keep their values; give them a group, or let a tuner freeze them"
            )

    def _check_moved(self, model: Any, before: Weights) -> None:
        moved = 0
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                found = "nan" if torch.isnan(parameter).any() else "infinite"
                raise ContractError(f"makes {name} {found} after {_STEPS} steps; expected finite weights")
            changed = not torch.equal(parameter, before[name])
            if changed and not parameter.requires_grad:
                raise ContractError(
                    f"changes {name}, which is frozen; take the parameters whose requires_grad is True, and step "
                    "those that have a gradient"
                )
            moved += changed
        if not moved:
            raise ContractError(f"changes no weight in {_STEPS} steps; step() must change the parameters in place")

    def _train(self, model: Any, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Steps as Trainer takes them."""
        for _ in range(_STEPS):
            _switch(optimizer, "train")
            model(**self.inputs).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    def _load(self) -> Any:
        try:
            return torch.load(self.folder / "state.pt", weights_only=True)
        except Exception as error:
            reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or str(error)[:200]
            raise ContractError(
                "has a state that a checkpoint cannot be resumed from, since it is no plain tensors, numbers, texts, "
                f"lists and dictionaries: {reason}; let state_dict return only such"
            ) from error


def _weights(model: Any) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _switch(optimizer: Any, mode: str) -> None:
    """Optimizers that average weights have modes, which Trainer switches."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()

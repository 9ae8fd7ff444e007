"""The contract of a tuner."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from swiftplug.errors import ContractError, UserError
from swiftplug.plugin.registry import LoadedPlugin
from swiftplug.testing.inputs import number, on
from swiftplug.testing.tiny import TinyRun
from swiftplug.training.model import set_precision

_STEPS, _RATE = 3, 0.05
_TOLERANCE = 1e-5

Weights = dict[str, torch.Tensor]


def check(plugin: LoadedPlugin) -> None:
    """Wrap a tiny model, train it, save it, open it again, and train on."""
    with TemporaryDirectory() as folder:
        _Tuning(plugin, Path(folder)).check()


class _Tuning:
    """A tuner at work in a folder."""

    def __init__(self, plugin: LoadedPlugin, folder: Path) -> None:
        self.tuner = plugin.bound
        self.folder = folder
        self.run = TinyRun(plugin, folder)
        self.run.args.check_plugins()
        self.inputs = {name: self.run.batch()[name] for name in ("input_ids", "attention_mask", "labels")}

    def check(self) -> None:
        """Raise a ContractError if it breaks the contract."""
        base_outputs = self._outputs(self._base())
        model = self._prepare()
        trained = _trained(model)
        self._check_disabled(model, base_outputs, "before the first step")

        before = _copy(model.state_dict())
        self._train(model, "training")
        after = model.state_dict()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad and not torch.equal(parameter, before[name]):
                raise ContractError(f"changes {name} in a step, although it is frozen; freeze what is not saved")
        if not any(not torch.equal(after[name], before[name]) for name in after):
            raise ContractError(
                f"trains nothing: no weight changed in {_STEPS} steps, as no gradient reaches the parameters that "
                "require one; let the forward pass use them"
            )
        self._check_disabled(model, base_outputs, "after training")

        outputs, loss = self._outputs(model), self._loss(model)
        saved = self._save(model, "saved")
        if not torch.equal(self._outputs(model), outputs):
            raise ContractError("changes the model when it saves it; training goes on with it after a checkpoint")
        reopened = self._open(saved, is_trainable=False)
        self._check_same(outputs, self._outputs(reopened), "opened again with from_pretrained")
        self._check_loss(loss, self._loss(reopened))
        if self.tuner.saves_whole_model:
            with on("AutoModelForCausalLM.from_pretrained of what it saved, as saves_whole_model is True"):
                plain = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
            self._check_same(outputs, self._outputs(plain), "opened by plain Transformers (saves_whole_model is True)")
        self._check_training_on(model, saved, trained)
        self._check_state_dict(model)

    def _base(self) -> Any:
        return self.run.args.load_model(torch.float32)

    def _prepare(self) -> Any:
        with on("prepare_model"):
            model = self.tuner.prepare_model(self.run.args, self._base())
        _check_module(model, "prepare_model")
        if not _trained(model):
            raise ContractError("leaves no parameter to train; set requires_grad of some in prepare_model")
        set_precision(model, torch.float32)
        return model

    def _open(self, folder: Path, *, is_trainable: bool) -> Any:
        with on(f"from_pretrained(model, folder, is_trainable={is_trainable})"):
            model = self.tuner.from_pretrained(self._base(), str(folder), is_trainable=is_trainable)
        _check_module(model, "from_pretrained")
        set_precision(model, torch.float32)
        return model

    def _save(self, model: Any, name: str, state_dict: Weights | None = None) -> Path:
        folder = self.folder / name
        folder.mkdir()
        what = "save_pretrained" + (" with a state_dict" if state_dict is not None else "")
        with on(what):
            self.tuner.save_pretrained(model, str(folder), state_dict=state_dict, safe_serialization=True)
        written = [path for path in folder.rglob("*") if path.is_file()]
        if not written:
            raise ContractError(f"writes no file in {what}; write what is trained into save_directory")
        if pickles := [path.name for path in written if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]:
            raise ContractError(
                f"writes {pickles[0]} although safe_serialization is True; write safetensors "
                "(safetensors.torch.save_file)"
            )
        return folder

    def _train(self, model: Any, what: str) -> None:
        """A few steps of plain gradient descent, which needs no state."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.train()
        with on(what), torch.random.fork_rng():
            torch.manual_seed(0)  # dropout
            for _ in range(_STEPS):
                loss = model(**self.inputs).loss
                if not loss.requires_grad:
                    raise ContractError("gives a loss without a gradient; let the forward pass use what trains")
                loss.backward()
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.data -= _RATE * parameter.grad
                        parameter.grad = None

    def _outputs(self, model: Any) -> torch.Tensor:
        inputs = {name: self.inputs[name] for name in ("input_ids", "attention_mask")}
        model.eval()
        with on("the forward pass of its model"), torch.no_grad():
            logits: torch.Tensor = model(**inputs).logits.float()
        # Virtual tokens that a tuner put in front have no labels.
        return logits[:, -inputs["input_ids"].shape[1] :][inputs["attention_mask"].bool()]

    def _loss(self, model: Any) -> float:
        model.eval()
        with torch.no_grad():
            return float(model(**self.inputs).loss)

    def _check_disabled(self, model: Any, base: torch.Tensor, when: str) -> None:
        context = self.tuner.disabled(model)
        if context is None:
            return
        inside_of = self._outputs(model)
        with on("the context of disabled(model)"), context:
            inside = self._outputs(model)
        if _distance(inside, base) > _TOLERANCE:
            raise ContractError(
                f"does not give the base model in disabled(model): its logits differ by {_distance(inside, base):.2g} "
                f"{when}; return None if what trains cannot be switched off"
            )
        if _distance(self._outputs(model), inside_of) > 0:
            raise ContractError("leaves the model disabled after the context of disabled(model); switch it on again")

    def _check_same(self, one: torch.Tensor, other: torch.Tensor, how: str) -> None:
        if one.shape != other.shape or _distance(one, other) > _TOLERANCE:
            raise ContractError(
                f"does not save all that it trained: {how}, the model's logits differ by {_distance(one, other):.2g}; "
                "save every trained weight, in float32, and load each of them"
            )

    def _check_loss(self, one: float, other: float) -> None:
        if abs(one - other) > _TOLERANCE:
            raise ContractError(f"has the loss {number(one)}, and {number(other)} when it is opened again")

    def _check_training_on(self, model: Any, saved: Path, trained: set[str]) -> None:
        """Check that a resumed run trains the same parameters, to the same values."""
        try:
            resumed = self._open(saved, is_trainable=True)
        except UserError:  # it says that it cannot
            return
        if _trained(resumed) != trained:
            name = min(_trained(resumed) ^ trained)
            which = "trains" if name in _trained(resumed) else "does not train"
            raise ContractError(
                f"{which} {name} when it is opened with is_trainable=True, unlike before; let from_pretrained set "
                "requires_grad as prepare_model does"
            )
        self._train(resumed, "training after from_pretrained with is_trainable=True")
        self._train(model, "training")
        difference = _distance(self._outputs(model), self._outputs(resumed))
        if difference > _TOLERANCE:
            raise ContractError(
                f"does not train on where it was saved: after {_STEPS} more steps the logits differ by "
                f"{difference:.2g} from those of the unbroken run; save all that the forward pass or its gradient uses"
            )

    def _check_state_dict(self, model: Any) -> None:
        """Check that weights which were gathered from several processes are those that are saved."""
        earlier, outputs = _copy(model.state_dict()), self._outputs(model)
        self._train(model, "training")
        folder = self._save(model, "gathered", earlier)
        difference = _distance(outputs, self._outputs(self._open(folder, is_trainable=False)))
        if difference > _TOLERANCE:
            raise ContractError(
                f"ignores the state_dict that save_pretrained gets (the logits differ by {difference:.2g}); write "
                "these weights, which were gathered from all processes, instead of the model's own"
            )


def _check_module(model: Any, method: str) -> None:
    if not isinstance(model, torch.nn.Module):
        raise ContractError(f"returned a {type(model).__name__} from {method}, expected a torch.nn.Module")


def _trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _copy(weights: Weights) -> Weights:
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")

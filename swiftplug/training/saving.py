"""How a run is saved and taken up again: by the tuner plugin, and so that no kill can leave half of anything."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from swiftplug.runs.folder import MARKER, Marker
from swiftplug.runs.plugins import RunPlugins
from swiftplug.training.callback_state import restore_states, states_of
from swiftplug.training.checkpoint import PREFIX, STAGING, keep_only, rotate, staged, staged_into


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints appear whole or not at all, and from which a run goes on exactly.

    Attributes:
        run_dir: The run's folder.
        plugins: The run's plugins; its tuner writes the weights.
        tokenizer: Saved beside them.
        marker: Written beside them, last.
    """

    run_dir: Path
    plugins: RunPlugins
    tokenizer: Any
    marker: Marker
    _already_ended = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.plugins.one("tuner").bound.save_pretrained(
            model, str(folder), state_dict=state_dict, safe_serialization=True
        )
        self.tokenizer.save_pretrained(folder)
        self.marker.write(folder)

    def save_final(self) -> None:
        """Write the trained weights to the root of the run's folder, all of them or none."""
        self._optimizer_mode("eval")
        if not self.args.should_save:
            self.save_model(str(self.run_dir), _internal_call=True)  # sharded weights are gathered by all processes
            return
        with staged_into(self.run_dir, last=MARKER) as staging:
            self.save_model(str(staging), _internal_call=True)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save all that an exact resume needs, into a folder that takes its name when it is complete."""
        self.store_flos()
        final = self.run_dir / f"{PREFIX}{self.state.global_step}"
        best = self.run_dir / f"{PREFIX}{self.state.best_global_step}"
        if best == final or best.is_dir():  # not every step that is evaluated is saved
            self.state.best_model_checkpoint = str(best)
        # Averaging optimizers keep other weights for use than for training; both runs, broken or not, switch here.
        self._optimizer_mode("eval")
        if self.args.world_size > 1:
            self._save_together(final)
        else:
            with staged(final) as staging:
                self._write_checkpoint(staging)
        if self.args.should_save:
            rotate(self.run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _save_together(self, final: Path) -> None:
        """Every process writes its part of a checkpoint; the first of them names it when all have."""
        staging = final.with_name(f"{STAGING}{final.name}")
        staging.mkdir(parents=True, exist_ok=True)
        self._write_checkpoint(staging)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            staging.rename(final)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            states: Any = states_of([*self.callback_handler.callbacks, self.control])
            self.state.stateful_callbacks = states
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_callback_state(self) -> None:
        restore_states([*self.callback_handler.callbacks, self.control], self.state.stateful_callbacks)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the tuner plugin has loaded the weights, before this trainer was made."""

    def _init_training_state(
        self, max_steps: int, steps_in_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        started = super()._init_training_state(max_steps, steps_in_epoch, epochs, resume_from_checkpoint, trial)
        # A run that a callback had stopped is not taken up again; the base class would train one step more.
        self._already_ended = self.control.should_training_stop
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            best = self.run_dir / Path(state.best_model_checkpoint or "none").name  # the folder may have been moved
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return started

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.should_save and self.args.save_total_limit == 1 and self.state.best_model_checkpoint:
            # The base class would do the same, but not so that a half-deleted checkpoint has another name.
            keep_only(self.run_dir, Path(self.state.best_model_checkpoint))
        return super()._finalize_training(*args, **kwargs)

    def _optimizer_mode(self, mode: str) -> None:
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from swiftplug.scaffold.package.callback import StopAtLoss


@pytest.mark.parametrize(
    ("logs", "stops"), [({"loss": 0.5}, True), ({"loss": 0.51}, False), ({"eval_loss": 0.1}, False)]
)
def test_it_stops_at_the_loss(logs: dict[str, float], stops: bool) -> None:
    control = TrainerControl()
    StopAtLoss(loss=0.5).on_log(TrainingArguments(), TrainerState(), control, logs)
    assert control.should_training_stop is stops

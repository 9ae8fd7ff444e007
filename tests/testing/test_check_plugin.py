"""A plugin that keeps its contract passes `check_plugin`; one that does not is told what to change."""

import pytest

from swiftplug.testing import ContractBroken, check_plugin


def test_an_installed_plugin_is_checked_by_name() -> None:
    check_plugin("loss", "swiftplug:focal", gamma=1.0)


def test_the_message_names_the_plugin() -> None:
    def per_row(outputs, labels):  # type: ignore[no-untyped-def]
        return outputs.logits.mean((1, 2))

    with pytest.raises(ContractBroken, match=r"loss 'per_row' returned a tensor of shape \(3,\), expected a scalar"):
        check_plugin("loss", per_row)

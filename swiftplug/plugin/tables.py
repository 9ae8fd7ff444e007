"""The module-level tables of SWIFT 3.0, the older way for a plugin file to name what it brings.

A `--plugin` file defines tables of these names, or imports these and writes into them.
"""

from typing import Any

extra_callbacks: list[Any] = []
"""Callbacks (instances or classes) that act in every run that is given the file."""

LOSS_MAPPING: dict[str, Any] = {}
"""Losses by name: each the function, or `{"loss_func": function}`."""

loss_scale_map: dict[str, Any] = {}
"""Loss scales by name, instances or classes."""

METRIC_MAPPING: dict[str, Any] = {}
"""Metrics by name: pairs of `compute` and `preprocess` (or None)."""

optimizers_map: dict[str, Any] = {}
"""Functions `(args, model, dataset)` by name."""

tools_prompt: dict[str, Any] = {}
"""Functions `(tool_names, tool_descs)` by name."""

extra_tuners: dict[str, Any] = {}
"""Tuner classes by name."""

prms: dict[str, Any] = {}
"""Process reward models by name."""

orms: dict[str, Any] = {}
"""Outcome reward models by name."""

KIND_OF_TABLE: dict[str, str] = {
    "extra_callbacks": "callback",
    "LOSS_MAPPING": "loss",
    "loss_scale_map": "loss_scale",
    "METRIC_MAPPING": "metric",
    "optimizers_map": "optimizer",
    "tools_prompt": "tools",
    "extra_tuners": "tuner",
    "prms": "prm",
    "orms": "orm",
}

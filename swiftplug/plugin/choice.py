"""How a config names a plugin: `focal`, or `{name: focal, gamma: 2}`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PluginChoice(BaseModel):
    """A plugin that a config or an option names, with the options given to it.

    Attributes:
        name: `NAME` or `DISTRIBUTION:NAME`.
        options: Its options, not checked yet: they are, when the plugin is resolved.

    Example:
        >>> PluginChoice.model_validate({"name": "focal", "gamma": 2}).options
        {'gamma': 2}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str) and set(value) != {"name", "options"}:
            return {"name": value["name"], "options": {key: item for key, item in value.items() if key != "name"}}
        return value

    def to_yaml(self) -> str | dict[str, Any]:
        """The choice as a config writes it: the bare name where there are no options."""
        return {"name": self.name, **self.options} if self.options else self.name

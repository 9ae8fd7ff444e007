"""How a config names a plugin: `focal`, or `{name: focal, gamma: 2}`."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class PluginChoice(BaseModel):
    """A plugin that a config or an option names, with the options given to it.

    Attributes:
        name: `NAME` or `DISTRIBUTION:NAME`.
        options: Its options, not checked yet: they are, when the plugin is resolved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    options: dict[str, Any] = {}

    @classmethod
    def from_yaml(cls, value: Any) -> "PluginChoice":
        """The choice that a config writes.

        Raises:
            pydantic.ValidationError: If it is neither a name nor a mapping with one.

        Example:
            >>> PluginChoice.from_yaml({"name": "focal", "gamma": 2}).options
            {'gamma': 2}
        """
        return cls.model_validate(fields_of(value))

    def to_yaml(self) -> str | dict[str, Any]:
        """The choice as a config writes it: the bare name where there are no options."""
        return {"name": self.name, **self.options} if self.options else self.name


def fields_of(value: Any) -> Any:
    """What a config writes as the fields of a choice; what is none is left for pydantic to refuse."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "name" in value:
        return {"name": value["name"], "options": {key: item for key, item in value.items() if key != "name"}}
    return value


WrittenChoice = Annotated[PluginChoice, BeforeValidator(fields_of)]
"""A choice, as the type of a field that is read from a config."""

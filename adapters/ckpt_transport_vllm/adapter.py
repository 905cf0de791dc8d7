"""An adapter that a trainer trains, and by which way engines come to answer with it."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_transport import ConfigError, Mapping, rules
from ckpt_transport.spi import AnyMapping


@dataclass(frozen=True)
class ServedAs:
    """An adapter is brought alone, and served beside the weights that it belongs to.

    Args:
        name: under which requests ask for it.
        folder: as of a file system that this host and the servers' share; on one host ``/dev/shm`` will do.

    Raises:
        ConfigError: a name that is none of a file.
    """

    name: str
    folder: Path | str

    def __post_init__(self) -> None:
        check_file_name("an adapter", self.name)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of a model of PEFT, for :meth:`VllmFleet.publish`.

    Args:
        configs: ``peft_config`` of the model.
        name: of the adapter at the trainer.
        served: under which name engines serve it beside their weights; by default it is merged into these on the way.
    """

    configs: MappingOf[str, Any]
    name: str = "default"
    served: ServedAs | None = None

    @property
    def config(self) -> Any:
        """Its LoraConfig.

        Raises:
            ConfigError: the model has no such adapter.
        """
        if self.name not in self.configs:
            raise ConfigError(f"there is no adapter '{self.name}'; there are: {', '.join(self.configs)}")
        return self.configs[self.name]

    def merging(self, mapping: AnyMapping) -> Mapping:
        """The rules by which it is merged on the way, and then those of a mapping.

        Raises:
            ConfigError: it cannot be merged on the way, or the mapping is to be found out; says so.
        """
        if isinstance(mapping, str):
            raise ConfigError(
                f"mapping is {mapping!r}, and the rules of an adapter come before it: give Mapping.of(...)"
            )
        return Mapping.of(*rules.of_peft(self.configs, [self.name]), *(mapping.rules if mapping else ()))


def check_file_name(what: str, name: str) -> None:
    """
    Raises:
        ConfigError: a folder cannot be called so.
    """
    if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"{what} cannot be called {name!r}, which becomes the name of a folder")

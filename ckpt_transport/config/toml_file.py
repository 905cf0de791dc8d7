"""A file of settings is TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import without_nul


def read_toml(path: Path, source: str) -> dict[str, object]:
    """The settings of a file; ``source`` says in messages what has named it.

    Raises:
        ConfigError: it cannot be read, or is not TOML; names the line.
    """
    try:
        text = without_nul(path, ConfigError).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}{source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration file {path}{source} is not UTF-8 text: {error}") from error
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path}{source} is nested deeper than settings are: {error}") from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = found[1] if found else max(len(text.splitlines()), 1)
        raise ConfigError(f"{path}{source}, line {line}: not valid TOML: {error}") from error

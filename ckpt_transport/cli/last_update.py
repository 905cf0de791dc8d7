"""Engines that join without holders are brought what the last update from this machine brought."""

from __future__ import annotations

from contextlib import closing

from ckpt_transport.cli import served
from ckpt_transport.cli.bringing import Driven
from ckpt_transport.cli.options import KEEP
from ckpt_transport.cli.output import say_on_stderr
from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError, ConfigError


def last_update(engine: str, settings: Config) -> served.FleetRecord:
    """Say what it was.

    Raises:
        ConfigError: there was none, its checkpoint has changed, or the fleet has moved on.
    """
    known = served.recall()
    if known is None or known.engine != engine:
        raise ConfigError(
            f"no update of {engine} engines was made from here ({served.record_path()} says); give --metas, or "
            "--checkpoint and --version"
        )
    served.check_unchanged(known)
    for endpoint in known.endpoints:
        try:
            with closing(Driven(engine, (endpoint,), KEEP, draft=False).fleet(settings)) as fleet:
                (serves,) = fleet.versions()
        except CkptTransportError as error:
            say_on_stderr(f"{endpoint} is not asked: {error}")
            continue
        if serves not in ("", known.version):
            raise ConfigError(
                f"{endpoint} serves '{serves}', and the last update from here brought '{known.version}'; give "
                "--checkpoint and --version"
            )
    return known

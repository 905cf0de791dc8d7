"""A transport may be anybody's: whatever goes wrong when it is opened is said with its name."""

from __future__ import annotations

from ckpt_transport.errors import CkptTransportError, PluginError
from ckpt_transport.reasons import named_reason
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transport


def opened(transport: Transport, group: Group, control: Control, timeout: float) -> Endpoint:
    """This rank's endpoint of a route.

    Raises:
        CkptTransportError, OSError: as the transport.
        PluginError: it has raised something else, or gives no endpoint; names it.
    """
    try:
        endpoint: object = transport.open(group, control, timeout)
    except (OSError, CkptTransportError):
        raise
    except Exception as error:
        said = named_reason(error)
        raise PluginError(f"transport '{transport.name}' cannot be opened: {said}") from error
    if not isinstance(endpoint, Endpoint):
        raise PluginError(f"transport '{transport.name}' cannot be opened: it gives {endpoint!r}, which is no Endpoint")
    return endpoint

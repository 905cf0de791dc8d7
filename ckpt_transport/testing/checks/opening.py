"""Is there a transport, and does it open a route? Nothing else can be checked where it does not."""

from __future__ import annotations

from ckpt_transport.reasons import named_reason
from ckpt_transport.testing.check import check
from ckpt_transport.testing.harness import Abandoned, Broken, Rank

REGION_BYTES = 4096


@check("A transport is made without arguments, and opens a route between two ranks.", "Transport.open", ranks=2)
def check_route_opens(rank: Rank) -> None:
    try:
        rank.open(regions=[REGION_BYTES], inbox=REGION_BYTES)
    except (Abandoned, Broken):
        raise
    except Exception as error:
        raise Broken(f"no route can be opened: {named_reason(error)}") from error

"""Ray actors as sinks and as sources: wherever a sink's address is taken, the handle of its actor may stand."""

from ckpt_transport_ray.actors import LocatedActors, locate
from ckpt_transport_ray.nodes import node_address

__all__ = ["LocatedActors", "locate", "node_address"]

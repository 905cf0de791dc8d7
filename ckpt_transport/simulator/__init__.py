"""The simulator runs plans in clusters that are not there: it says how long they take, and what they wait for.

:func:`simulate` runs the plan that the planner made for a :class:`SimulatedWorld`. Rates are those of a
:class:`Cluster`; what it knows of transports it has from their traits.
"""

from ckpt_transport.simulator.cluster import Cluster as Cluster
from ckpt_transport.simulator.cluster import cluster_of as cluster_of
from ckpt_transport.simulator.cluster import included as included
from ckpt_transport.simulator.goal import write_goal as write_goal
from ckpt_transport.simulator.model import Model as Model
from ckpt_transport.simulator.model import model_of as model_of
from ckpt_transport.simulator.model import shares_of as shares_of
from ckpt_transport.simulator.run import Death as Death
from ckpt_transport.simulator.run import Resource as Resource
from ckpt_transport.simulator.run import Simulated as Simulated
from ckpt_transport.simulator.run import simulate as simulate
from ckpt_transport.simulator.world import SimulatedWorld as SimulatedWorld
from ckpt_transport.simulator.world import manifest_of as manifest_of
from ckpt_transport.simulator.world import world_of as world_of

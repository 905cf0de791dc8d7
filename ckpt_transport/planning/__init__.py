"""Plans say what an update will do before it does it. Planning is pure: it needs no process, socket or plugin.

:func:`plan` makes a :class:`Plan`, :func:`verify` proves it, :func:`verify_part` proves what one rank does of it, and
:func:`explain` tells a person about it.
"""

from ckpt_transport.planning.carried_shares import carried_share as carried_share
from ckpt_transport.planning.carried_shares import name_of_share as name_of_share
from ckpt_transport.planning.carried_shares import topology_for as topology_for
from ckpt_transport.planning.chain_broadcast import transports_of as transports_of
from ckpt_transport.planning.explain import explain as explain
from ckpt_transport.planning.explain import slowest as slowest
from ckpt_transport.planning.links import NOT_MEASURED as NOT_MEASURED
from ckpt_transport.planning.links import MeasuredRates as MeasuredRates
from ckpt_transport.planning.links import sending_rates as sending_rates
from ckpt_transport.planning.ownership import spread as spread
from ckpt_transport.planning.pauses import Pauses as Pauses
from ckpt_transport.planning.pauses import StagingPlace as StagingPlace
from ckpt_transport.planning.pauses import expect_pauses as expect_pauses
from ckpt_transport.planning.planner import plan as plan
from ckpt_transport.planning.values.byte_ranges import ByteRange as ByteRange
from ckpt_transport.planning.values.byte_ranges import ByteRangeSet as ByteRangeSet
from ckpt_transport.planning.values.manifest import Carrier as Carrier
from ckpt_transport.planning.values.manifest import Conversion as Conversion
from ckpt_transport.planning.values.manifest import Delta as Delta
from ckpt_transport.planning.values.manifest import DeltaForm as DeltaForm
from ckpt_transport.planning.values.manifest import Extent as Extent
from ckpt_transport.planning.values.manifest import Manifest as Manifest
from ckpt_transport.planning.values.manifest import PlacedTensor as PlacedTensor
from ckpt_transport.planning.values.manifest import TensorRange as TensorRange
from ckpt_transport.planning.values.manifest import TensorSpec as TensorSpec
from ckpt_transport.planning.values.manifest import run_by_run as run_by_run
from ckpt_transport.planning.values.placed_bytes import PlacedBytes as PlacedBytes
from ckpt_transport.planning.values.plan import IN_PLACE as IN_PLACE
from ckpt_transport.planning.values.plan import Bucket as Bucket
from ckpt_transport.planning.values.plan import Piece as Piece
from ckpt_transport.planning.values.plan import Plan as Plan
from ckpt_transport.planning.values.plan import Ring as Ring
from ckpt_transport.planning.values.plan import RingUse as RingUse
from ckpt_transport.planning.values.plan import Stage as Stage
from ckpt_transport.planning.values.plan import StageKind as StageKind
from ckpt_transport.planning.values.plan import Stages as Stages
from ckpt_transport.planning.values.prediction import Prediction as Prediction
from ckpt_transport.planning.values.settings import AUTO as AUTO
from ckpt_transport.planning.values.settings import Settings as Settings
from ckpt_transport.planning.values.share import ServedShares as ServedShares
from ckpt_transport.planning.values.share import Share as Share
from ckpt_transport.planning.values.share import digest_of as digest_of
from ckpt_transport.planning.values.topology import EVERYTHING as EVERYTHING
from ckpt_transport.planning.values.topology import NO_LIMIT as NO_LIMIT
from ckpt_transport.planning.values.topology import RankInfo as RankInfo
from ckpt_transport.planning.values.topology import Role as Role
from ckpt_transport.planning.values.topology import Topology as Topology
from ckpt_transport.planning.values.whole_module import WholeModule as WholeModule
from ckpt_transport.planning.values.whole_module import modules_in_words as modules_in_words
from ckpt_transport.planning.values.whole_module import reasons_of as reasons_of
from ckpt_transport.planning.verify import verify as verify
from ckpt_transport.planning.verify import verify_part as verify_part

"""Execution runs a plan: it derives one rank's schedule, runs it as a pipeline, and records a timeline."""

from ckpt_transport.execution.applies import Apply as Apply
from ckpt_transport.execution.arrivals import Arrival as Arrival
from ckpt_transport.execution.arrivals import arrivals as arrivals
from ckpt_transport.execution.column_extent import column_extents as column_extents
from ckpt_transport.execution.digest_steps import Digests as Digests
from ckpt_transport.execution.digests import OwnerDigests as OwnerDigests
from ckpt_transport.execution.digests import SinkDigests as SinkDigests
from ckpt_transport.execution.fills import FillMemory as FillMemory
from ckpt_transport.execution.fills import Fills as Fills
from ckpt_transport.execution.first_digests import FirstSinkDigests as FirstSinkDigests
from ckpt_transport.execution.first_digests import PromptOwnerDigests as PromptOwnerDigests
from ckpt_transport.execution.gathered_timeline import GatheredTimeline as GatheredTimeline
from ckpt_transport.execution.gathered_timeline import encode_events as encode_events
from ckpt_transport.execution.ledger import Ledger as Ledger
from ckpt_transport.execution.pipeline import Pipeline as Pipeline
from ckpt_transport.execution.schedule import Lent as Lent
from ckpt_transport.execution.schedule import LentKind as LentKind
from ckpt_transport.execution.schedule import RankSchedule as RankSchedule
from ckpt_transport.execution.schedule import RankStep as RankStep
from ckpt_transport.execution.timeline import StageEvent as StageEvent
from ckpt_transport.execution.timeline import draw as draw
from ckpt_transport.execution.timeline import now as now
from ckpt_transport.execution.timeline import write_trace as write_trace
from ckpt_transport.execution.transfers import RouteAttachment as RouteAttachment

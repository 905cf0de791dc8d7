"""Deltas are what differs between two versions: it is found, encoded, decoded, and exchanged with what is served.

Bytes only: an *element* is a unit of 1, 2, 4 or 8 bytes, whatever type it has. So signed zeros differ, and so do two
NaNs whose bits do.
"""

from ckpt_transport.deltas.carriers import DeltaRange as DeltaRange
from ckpt_transport.deltas.carriers import Differences as Differences
from ckpt_transport.deltas.carriers import delta_manifest as delta_manifest
from ckpt_transport.deltas.carriers import find_differences as find_differences
from ckpt_transport.deltas.carriers import ranges_of as ranges_of
from ckpt_transport.deltas.carriers import why_unlike as why_unlike
from ckpt_transport.deltas.compared_bytes import ComparedBytes as ComparedBytes
from ckpt_transport.deltas.compared_bytes import CopiedBytes as CopiedBytes
from ckpt_transport.deltas.compared_bytes import MadeBytes as MadeBytes
from ckpt_transport.deltas.device_carriers import locate_on_device as locate_on_device
from ckpt_transport.deltas.device_exchange import DeviceExchange as DeviceExchange
from ckpt_transport.deltas.element_map import ElementMap as ElementMap
from ckpt_transport.deltas.elements import Elements as Elements
from ckpt_transport.deltas.elements import each_once as each_once
from ckpt_transport.deltas.encoded import Encoded as Encoded
from ckpt_transport.deltas.encoding import encode as encode
from ckpt_transport.deltas.exchanges import ElementExchange as ElementExchange
from ckpt_transport.deltas.exchanges import exchange_each as exchange_each
from ckpt_transport.deltas.exchanges import why_no_exchange as why_no_exchange
from ckpt_transport.deltas.for_shares import ForShares as ForShares
from ckpt_transport.deltas.host_carriers import locate_on_host as locate_on_host
from ckpt_transport.deltas.host_elements import HostElements as HostElements
from ckpt_transport.deltas.host_elements import each_once_on_host as each_once_on_host
from ckpt_transport.deltas.host_exchange import Changes as Changes
from ckpt_transport.deltas.host_exchange import HostExchange as HostExchange
from ckpt_transport.deltas.one_range import of_one_range as of_one_range
from ckpt_transport.deltas.sections import UNIT_DTYPES as UNIT_DTYPES
from ckpt_transport.deltas.served_spans import go_apart as go_apart
from ckpt_transport.deltas.whole_tensors import VersionRanges as VersionRanges
from ckpt_transport.deltas.whole_tensors import cut as cut
from ckpt_transport.deltas.whole_tensors import find_what_is_sent as find_what_is_sent

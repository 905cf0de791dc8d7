"""Rates say how fast bytes cross the links of a host. They are measured once, kept in a file, and used by plans."""

from ckpt_transport.rates.kept import keep as keep
from ckpt_transport.rates.kept import kept as kept
from ckpt_transport.rates.measure import measure as measure
from ckpt_transport.rates.values import HostLink as HostLink
from ckpt_transport.rates.values import HostRates as HostRates
from ckpt_transport.rates.values import LinkKind as LinkKind
from ckpt_transport.rates.values import LinkRate as LinkRate

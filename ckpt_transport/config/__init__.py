"""Every setting there is, where it may come from, and what it means.

From low to high: the default, a TOML file (named by argument or by ``CKPT_TRANSPORT_CONFIG``), the environment
(``CKPT_TRANSPORT_<FIELD>``), and arguments. A setting nobody knows or that makes no sense is an error that says where
it came from; nothing is ignored. An empty variable is an empty value, not a missing one. What a transport has of its
own is given as a table ``[transports.NAME]`` or as ``CKPT_TRANSPORT_NAME_SETTING``.
"""

from ckpt_transport.config.config import Config as Config
from ckpt_transport.config.config import describe as describe
from ckpt_transport.config.declared import TRANSPORTS as TRANSPORTS
from ckpt_transport.config.environment import ENV_FILE as ENV_FILE
from ckpt_transport.config.environment import ENV_PREFIX as ENV_PREFIX
from ckpt_transport.config.meaning import WEEK as WEEK

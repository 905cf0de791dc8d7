"""For vLLM's processes where they share cores: sleep a little where vLLM would yield.

They wait for each other by yielding in a loop. Newer Linux (6.18; 6.12 from 6.12.63) counts a yield as time that was
used, so after a second of such waiting a process may get no time at all for as long as others on its core are busy.
Python imports this module at the start of every process whose ``PYTHONPATH`` has this folder.
"""

import os
import time

NAP_SECONDS = 2e-4

os.sched_yield = lambda: time.sleep(NAP_SECONDS)

"""The proof that a plan does what it should. It imports values and nothing of the planner.

:func:`verify` proves the whole of a plan, and :func:`verify_part` what one rank does of it.
"""

from ckpt_transport.planning.verify.proof import verify, verify_part

__all__ = ["verify", "verify_part"]

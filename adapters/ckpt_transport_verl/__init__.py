"""verl's weights by ckpt_transport.

verl imports :mod:`ckpt_transport_verl.checkpoint_engine`, because a setting of its own names it, and then finds the
engine ``ckpt_transport`` in its registry.
"""

__all__: list[str] = []

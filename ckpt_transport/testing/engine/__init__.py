"""Does an engine keep every promise of an update, from outside: to who asks it, and to who updates it?

The whole of an adapter's test file::

    import pytest
    from ckpt_transport.testing.engine import CHECKS, EngineCheck

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_conformance(check: EngineCheck) -> None:
        check(MyEngineUnderTest)

Without pytest: ``run(MyEngineUnderTest)``. Checks that an engine cannot be asked for say why; with pytest they skip.
"""

from ckpt_transport.testing.engine.check import EngineCheck
from ckpt_transport.testing.engine.conformance import CHECKS, run
from ckpt_transport.testing.engine.trial import NotApplicableError, Patience
from ckpt_transport.testing.engine.under_test import EngineUnderTest, FleetUnderTest

__all__ = [
    "CHECKS",
    "EngineCheck",
    "EngineUnderTest",
    "FleetUnderTest",
    "NotApplicableError",
    "Patience",
    "run",
]

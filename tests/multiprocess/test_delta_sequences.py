"""Whatever happens between deltas, sinks serve the bytes of the version that they say they serve."""

from __future__ import annotations

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport_torch import Attachment, attach
from tests.patience import DEADLINE, PATIENT

CONFIG = Config.load(**PATIENT, delta="on", commit="auto")
BASES = {base: Config.load(**PATIENT, delta="on", commit="auto", delta_base=base) for base in ("host", "beside")}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int64, torch.int8, torch.bool)
Version = dict[str, torch.Tensor]

densities = st.sampled_from([0.0, 0.01, 0.2, 1.0])
events = st.one_of(
    st.tuples(st.just("step"), densities),
    st.tuples(st.just("one element"), st.floats(0, 1)),
    st.tuples(st.just("lost"), densities),
    st.tuples(st.just("one byte"), st.floats(0, 1)),
    st.tuples(st.just("rollback"), st.just(0.0)),
)


class Holding(torch.nn.Module):
    """Holds tensors of all types, of these sizes and with any bits: NaN, and zeros with a sign."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        for number, (size, dtype) in enumerate(zip(sizes, DTYPES, strict=False)):
            self.register_buffer(f"tensor{number}", torch.zeros(size, dtype=dtype))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def stepped(version: Version, density: float, generator: torch.Generator) -> Version:
    """This version, with other bits in about so many elements."""
    made = {name: tensor.clone() for name, tensor in version.items()}
    for tensor in made.values():
        hit = torch.rand(tensor.numel(), generator=generator) < density
        bits = torch.randint(0, 256, (tensor.numel(), tensor.itemsize), generator=generator, dtype=torch.uint8)
        raw(tensor).view(tensor.numel(), -1)[hit] ^= bits[hit] & 1 if tensor.dtype == torch.bool else bits[hit]
    return made


class Fleet:
    """Two modules that are served, what each should hold, and what has happened to them."""

    def __init__(self, server: ParameterServer, sizes: list[int], generator: torch.Generator) -> None:
        self._server, self._generator, self._number = server, generator, 0
        self._modules = [Holding(sizes) for _ in range(2)]
        self._sinks: list[Attachment] = [attach(module, config=Config.load(**PATIENT)) for module in self._modules]
        self._latest: Version = {name: tensor.clone() for name, tensor in self._modules[0].state_dict().items()}
        self._before: Version = self._latest
        self._last, self._serve = "", ["", ""]
        """What was brought last, and what each serves of that, as far as nobody else has written to it."""
        self._can_go_back = False

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def step(self, density: float) -> None:
        self._publish(stepped(self._latest, density, self._generator), 2)

    def one_element(self, where: float) -> None:
        version = {name: tensor.clone() for name, tensor in self._latest.items()}
        tensor = version["tensor0"]
        raw(tensor)[round(where * (raw(tensor).numel() - 1))] ^= 1
        self._publish(version, 2)

    def lost(self, density: float) -> None:
        """A version that reaches one of the two."""
        self._publish(stepped(self._latest, density, self._generator), 1)

    def one_byte(self, where: float) -> None:
        """Somebody else adds one to a byte of what is served."""
        for sink in self._sinks:
            ask_version(sink.address, CONFIG, DEADLINE)  # it has noted what it serves then
        served = raw(self._modules[1].state_dict()["tensor0"])
        served[round(where * (served.numel() - 1))] += 1
        self._serve[1], self._can_go_back = "", False

    def rollback(self, _: float) -> None:
        if self._can_go_back:
            self._server.rollback([sink.address for sink in self._sinks])
            self._latest, self._last, self._can_go_back = self._before, "", False
            self._check(2)

    def _publish(self, version: Version, to: int) -> None:
        self._number += 1
        can_follow = bool(self._last) and set(self._serve[:to]) == {self._last}
        addresses = [sink.address for sink in self._sinks[:to]]
        report = self._server.publish(f"step-{self._number}", version, addresses)
        assert can_follow or not _is_delta(report), "what a delta was put on is not what the source holds"
        self._before, self._latest, self._last = self._latest, version, f"step-{self._number}"
        self._serve[:to] = [self._last] * to
        self._can_go_back = to == 2 and _is_delta(report)
        self._check(to)

    def _check(self, to: int) -> None:
        for module in self._modules[:to]:
            for name, tensor in module.state_dict().items():
                assert torch.equal(raw(tensor), raw(self._latest[name])), f"{name} is not what was brought last"


def _is_delta(report: Report | None) -> bool:
    assert report is not None
    assert report.delta is not None
    return bool(report.delta.base)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    happens=st.lists(events, min_size=2, max_size=7),
    sizes=st.lists(st.sampled_from([1, 3, 77, 4097, 65_541]), min_size=1, max_size=len(DTYPES)),
    seed=st.integers(0, 99),
    base=st.sampled_from(sorted(BASES)),
)
def test_given_any_events_between_deltas_then_sinks_serve_what_was_brought_last(
    happens: list[tuple[str, float]], sizes: list[int], seed: int, base: str
) -> None:
    with ParameterServer(BASES[base]) as server:
        served = Fleet(server, sizes, torch.Generator().manual_seed(seed))
        try:
            served.step(1.0)
            for what, much in happens:
                getattr(served, what.replace(" ", "_"))(much)
            served.step(0.01)
        finally:
            served.close()

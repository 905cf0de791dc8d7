"""What the demonstration found, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckpt_transport.planning import explain
from examples.shared.display import Display, milliseconds
from examples.vllm.clients import Completion
from examples.vllm.result import PROMPTS, Updated

PICTURE_WIDTH = 72
PICTURE_MARGIN = 48


def show(display: Display, updated: Updated) -> None:
    """Print what is to be seen of one update."""
    update = updated.done.update
    display.block(explain(update.plan), "The plan")
    width = max(min(PICTURE_WIDTH, display.width - PICTURE_MARGIN), 20)
    display.block(update.picture(width), "Timeline: ▒ fill  ░ transfer  █ apply")
    display.line(f"steps: {_times(updated.done.steps)}")
    display.line(f"of the update: {_times(update.phases)}")
    for rank, told in sorted(update.apply_summary.items()):
        display.line(f"{update.labels[rank]}: {told}")

    display.table(
        ["", "requests", "failed", "longest", "longest wait for a token"],
        [_row(name, span) for name, span in updated.spans().items()],
    )
    frozen = updated.frozen()
    display.line(
        f"requests were held for {_each(updated.done.held.values())}, forward passes for "
        f"{_each(update.paused.values())}; the {len(frozen)} requests that were under way meanwhile waited at most "
        f"{milliseconds(max((each.longest_wait(updated.held) for each in frozen), default=0.0))} for their next token"
    )
    display.line(
        f"These were begun by {updated.old} and ended by {updated.new}, as requests are frozen and then go on (keep). "
        "No forward pass sees two versions. So that no answer spans two either, pause with wait or abort."
    )

    for prompt, before, after in zip(PROMPTS, updated.before.tokens, updated.after.tokens, strict=True):
        display.line(f"prompt '{prompt}'")
        display.line(f"{updated.old:8}{_ids(before)}")
        display.line(f"{updated.new:8}{_ids(after)}")
    if updated.after.tokens == updated.expected.tokens:
        display.line(f"A vLLM that loaded {updated.new} from disk gives the same tokens as this one.")
    checksums, different = updated.expected.checksums, updated.after.differences(updated.expected)
    display.line(
        f"{len(checksums) - len(different)} of {len(checksums)} checksums of parameters equal those of a vLLM that "
        f"loaded {updated.new} from disk; {len(updated.after.differences(updated.before))} are not those of "
        f"{updated.old}",
        "bold red" if different else "",
    )


def conclude(display: Display, problems: Sequence[str]) -> None:
    """Print whether all was as promised."""
    display.heading("Result")
    for problem in problems:
        display.line(f"NOT AS PROMISED: {problem}", "bold red")
    if not problems:
        display.line("Both updates gave what loading from disk gives, and no request failed.", "bold green")


def _row(name: str, span: Sequence[Completion]) -> list[str]:
    return [
        name,
        str(len(span)),
        str(sum(bool(each.error) for each in span)),
        milliseconds(max((each.end - each.start for each in span), default=0.0)),
        milliseconds(max((each.longest_wait() for each in span), default=0.0)),
    ]


def _times(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in steps.items())


def _each(seconds: Iterable[float]) -> str:
    return ", ".join(map(milliseconds, seconds))


def _ids(tokens: Sequence[int]) -> str:
    return " ".join(f"{token:3}" for token in tokens)

"""A version must bring what an engine expects; where it does not, an error says what is in the way of the names."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ckpt_transport.checkpoint.rules import FLOATS
from ckpt_transport.engine.engine import Engine
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.planning import Plan, TensorSpec
from ckpt_transport.update.plan_cache import Expected

WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch puts into names, for ``torch.compile``, ``DistributedDataParallel``, FSDP and checkpointed activations."""

BY_MAPPING = 'have that done by mapping="auto" (--mapping auto)'
ADD_RULE = "add a rule for it to the mapping, which has none"


def check_expected(plan: Plan, engine: Engine, expected: Expected) -> None:
    """
    Raises:
        PlanMismatchError: the plan brings less than the engine expects, or more, or something else; names it. Another
            name of a tensor that the engine expects is not more.
    """
    if expected is None:
        return
    brought = dict(plan.manifest.specs)
    version = f"version '{plan.manifest.version}'"
    by_mapping = ADD_RULE if plan.manifest.mappings else BY_MAPPING
    tied = {name: names for names in engine.ties() for name in names}
    arriving = frozenset(brought)
    for spec in expected:
        if spec.name not in brought:
            if tied.get(spec.name, frozenset()) & arriving:
                continue
            wanted = {each.name for each in expected}
            cure = in_the_way(version, arriving, engine.label, wanted, by_mapping) or _other_names(
                arriving - wanted, engine.label
            )
            raise PlanMismatchError(f"{version} lacks tensor {spec}, which {engine.label} has{cure}")
        other = brought.pop(spec.name)
        if other != spec:
            raise PlanMismatchError(
                f"tensor {spec.name} is {other.dtype} {list(other.shape)} in {version} and "
                f"{spec.dtype} {list(spec.shape)} in {engine.label}{_cast(other, spec, plan)}"
            )
    known = {spec.name for spec in expected}
    more = sorted(name for name in brought if not tied.get(name, frozenset()) & known)
    if more:
        names = ", ".join(more[:5]) + (", ..." if len(more) > 5 else "")
        raise PlanMismatchError(
            f"{version} has tensors that {engine.label} does not: {names}; leave them out, "
            "or have a mapping do so: rules.Drop(...), or a rule 'drop' in the file of --mapping"
        )


def brought_of(expected: Expected, plan: Plan) -> Expected:
    """Those of the expected tensors that a plan brings, for a version that leaves the others as they are."""
    brought = plan.manifest.specs
    return None if expected is None else tuple(spec for spec in expected if spec.name in brought)


def in_the_way(
    version: str, arriving: Collection[str], engine: str, expected: Collection[str], by_mapping: str = BY_MAPPING
) -> str:
    """Say what the names of one side have in addition, and the cure; empty when that is not the difference."""
    if extra := _extra(arriving, expected):
        where, part, without = extra
        return (
            f": {where.format(version)} '{part}', and those of {engine} do not; take it out: "
            f"{{name.{without}: tensor for name, tensor in tensors.items()}}, or {by_mapping}"
        )
    if extra := _extra(expected, arriving):
        where, part, _ = extra
        return (
            f": {where.format(engine)} '{part}', and those of {version} do not; attach the module inside of the one "
            f"that adds it (as model.{part.rstrip('.')}), or give the version such names"
        )
    return ""


def _other_names(more: Collection[str], engine: str) -> str:
    """Say which names only the version has: one of them may be what is lacking."""
    if not more:
        return ""
    return (
        f", and has {', '.join(sorted(more)[:3])}, which {engine} does not; is it a checkpoint of the same model? "
        "Where only names differ, give a mapping (--mapping)"
    )


def _cast(brought: TensorSpec, expected: TensorSpec, plan: Plan) -> str:
    """Say the cure where a mapping can cast what is brought to what is expected."""
    if brought.shape != expected.shape or not {brought.dtype, expected.dtype} <= set(FLOATS):
        return "; is it a checkpoint of the same model?"
    rule = f'rules.Cast("{expected.dtype}")'
    how = f"add {rule} to the mapping" if plan.manifest.mappings else f"have a mapping do so: {rule}"
    return f"; cast it, or {how}, or a rule 'cast' in the file of --mapping"


def _extra(names: Collection[str], others: Collection[str]) -> tuple[str, str, str] | None:
    """Where ``names`` have something that ``others`` do not, what, and the call of str that takes it out.

    None where most of ``others`` are not found like this.
    """
    wanted = frozenset(others)
    prefix = ""
    for one, other in zip(min(names, default="").split("."), max(names, default="").split("."), strict=False):
        if one != other:
            break
        prefix += f"{one}."
        if _mostly(wanted, (name.removeprefix(prefix) for name in names)):
            return "all names of {} begin with", prefix, f"removeprefix('{prefix}')"
    for part in WRAPPERS:
        if any(part in name for name in names) and _mostly(wanted, (name.replace(part, "") for name in names)):
            return "names of {} contain", part, f"replace('{part}', '')"
    return None


def _mostly(wanted: frozenset[str], names: Iterable[str]) -> bool:
    return 2 * len(wanted.intersection(names)) > len(wanted)

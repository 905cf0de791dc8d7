"""How much memory is free, by what the kernel says, and what an update may take of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_transport.memory.free import LEAST, default_budget, free_on_host
from ckpt_transport.update.plan_cache import PlanCache

GIB = 1 << 30


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Files as those of a kernel that has 8 GiB free, and of a control group without a limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("1:cpu:/elsewhere\n0::/serving/engine\n")
    (tmp_path / "groups/serving/engine").mkdir(parents=True)
    limit(tmp_path / "groups/serving/engine", "max", 5 * GIB, 0)
    return tmp_path


def limit(group: Path, most: object, used: int, reclaimable: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - reclaimable}\ninactive_file {reclaimable}\n")


def free(host: Path) -> int:
    return free_on_host(host / "proc", host / "groups")


def test_given_no_limit_then_what_the_kernel_has_available_is_free(host: Path) -> None:
    assert free(host) == 8 * GIB


def test_given_a_control_group_with_a_limit_then_its_rest_is_free_with_files_that_were_read(
    host: Path,
) -> None:
    limit(host / "groups/serving/engine", 6 * GIB, 5 * GIB, 2 * GIB)
    assert free(host) == 3 * GIB


def test_given_a_container_then_the_group_that_it_sees_as_the_root_counts(host: Path) -> None:
    (host / "proc/self/cgroup").write_text("0::/../outside\n")
    limit(host / "groups", GIB, GIB // 2, 0)
    assert free(host) == GIB // 2


def test_given_more_used_than_the_limit_then_nothing_is_free(host: Path) -> None:
    limit(host / "groups/serving/engine", GIB, 2 * GIB, 0)
    assert free(host) == 0


def test_given_this_machine_then_an_update_may_take_part_of_its_memory_and_never_too_little_for_slots() -> None:
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    assert LEAST <= default_budget() <= max(total // 2, LEAST)


def test_given_no_setting_then_the_budget_is_found_out_once_and_one_that_is_set_is_kept() -> None:
    plans = PlanCache(0)
    found = plans.budget()
    assert found >= LEAST
    assert plans.budget() == found
    assert PlanCache(300).budget() == 300

"""cgroup v2, whatever this host has: our tests of limits, launch and cleanup inside one guest.

One boot for all of it (see v2_guest). What each test did in there is printed here.
"""

from __future__ import annotations

import pytest
import v2_guest
from v2_inside import MUTATIONS

from bench.journal import open_run
from bench.model import Image

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.timeout(1000)]

TESTS = (
    "tests/v2_limits.py",
    "tests/test_ct_limits.py",
    "tests/test_cgroup_processes.py",
    "tests/test_ct_ways.py",
    "tests/test_ct_process.py",
    "tests/test_ct_container.py",
    "tests/test_network.py",
    "tests/test_cleanup.py::test_a_killed_run_is_undone_by_the_next_command",
    "tests/test_cleanup.py::test_a_cleaner_inside_the_runs_group_survives",
    "tests/v2_tune.py",
    # A fork of the tests' own large process is charged to the parent's group, not to the
    # one measured: 50 ms of the second under emulation.
    "--deselect=tests/test_cgroup_processes.py::test_one_cpu_second_reads_so",
)
LIMIT_S = 800.0  # for all of it; 80 s are usual where nothing else runs


@pytest.fixture(scope="module")
def inside(
    default_image: Image, busybox: Image, tmp_path_factory: pytest.TempPathFactory
) -> v2_guest.Inside:
    """The guest's report of all tests and mutations."""
    folder = tmp_path_factory.mktemp("v2")
    files = sorted({test.partition("::")[0] for test in TESTS if not test.startswith("-")})
    bundle = v2_guest.make_bundle(folder / "bundle", busybox, files)
    with open_run(folder / "run") as context:
        return v2_guest.boot(
            context,
            default_image,
            bundle,
            ("run", *TESTS),
            limit_s=LIMIT_S,
        )


def test_the_guest_has_version_two_only(
    inside: v2_guest.Inside, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hierarchy is cgroup2fs with all controllers in it; kernel and type are printed."""
    facts = inside.result["facts"]
    with capsys.disabled():
        print()
        for name, value in facts.items():
            print(f"  {name}: {value}")
    assert facts["stat -fc %T /sys/fs/cgroup"] == "cgroup2fs"
    assert {"cpu", "cpuset", "memory", "pids"} <= set(facts["controllers"].split())


def test_our_tests_pass_there(inside: v2_guest.Inside, capsys: pytest.CaptureFixture[str]) -> None:
    """Every inner test has passed and none was skipped; each one's result is printed."""
    found = inside.result["tests"]
    with capsys.disabled():
        print()
        for name, (outcome, reason, seconds) in found["outcomes"].items():
            print(f"  {outcome:7} {seconds:6.2f} s  {name} {reason}".rstrip())
    bad = {
        name: why for name, (outcome, why, _) in found["outcomes"].items() if outcome != "passed"
    }
    assert found["code"] == 0 and not bad, inside.output
    ran = {name.partition("::")[0] for name in found["outcomes"]}
    assert ran == {test.partition("::")[0] for test in TESTS if not test.startswith("-")}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_name_of_a_limit_file_is_noticed(inside: v2_guest.Inside, name: str) -> None:
    """With a neighbour's name in the code, the test of that limit fails (and it ran)."""
    found = inside.result["mutations"][name]
    assert found["code"] == 1, inside.output
    assert [outcome for outcome, _, _ in found["outcomes"].values()] == ["failed"]

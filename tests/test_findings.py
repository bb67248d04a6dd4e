"""Findings that a run's own data give."""

from __future__ import annotations

from typing import Any

from bench.disturbances import LIMITS
from bench.findings import CONDITIONS, doubly_cached, from_run


def run(**changes: Any) -> dict[str, Any]:
    """A run of a VM and a container in which nothing is wrong."""
    limits = {"memory_bytes": 512 << 20, "memory_basis": "usable"}
    receipt = {"release": "6.1.0", "mem_available_bytes": str(510 << 20)}
    return {
        "plan": {
            "arms": ["vm", "container"],
            "workloads": [{"name": "redis", "network": "bridge", "limits": limits}],
        },
        "receipts": [
            {"arm": arm, "workload": "redis", "receipt": dict(receipt)}
            for arm in ("vm", "container")
        ],
        "descriptions": {"container": {"image_direct_io": True}, "vm": {}},
        **changes,
    }


def trial(arm: str, **disturbances: float) -> dict[str, Any]:
    """A stored trial with these disturbances."""
    quiet = {"settle_flagged": 0.0, "image_resident": 1.0, "harness_shares_cpu": 0.0}
    return {"arm": arm, "workload": "redis", "disturbances": {**quiet, **disturbances}}


def codes(record: dict[str, Any], trials: list[dict[str, Any]]) -> set[str]:
    """The codes of all findings."""
    return {finding.code for finding in from_run(record, trials)}


def test_a_clean_run_has_none() -> None:
    """Equal kernels, the memory that was promised, a quiet host."""
    assert codes(run(), [trial("vm"), trial("container")]) == set()


def test_another_kernel_is_told_with_the_rows_it_concerns() -> None:
    """System calls, network, disk and memory differ by kernel as well."""
    record = run()
    record["receipts"][1]["receipt"]["release"] = "6.18.1"
    (finding,) = from_run(record, [])
    assert finding.code == "guest-kernel-differs"
    assert "memory" in finding.meaning and "redis" in finding.meaning


def test_arms_that_are_alike_share_one_warning() -> None:
    """One sentence names all that run the same other kernel; another kernel has its own."""
    record = run()
    arms = {"vm": "6.1.0", "vm:direct": "6.1.0", "vm:stock": "5.10", "container": "6.18.1"}
    record["plan"]["arms"] = list(arms)
    record["receipts"] = [
        {"arm": arm, "workload": "redis", "receipt": {"release": release}}
        for arm, release in arms.items()
    ]
    found = from_run(record, [])
    assert {finding.code for finding in found} == {"guest-kernel-differs"}
    assert [finding.message for finding in found] == [
        "vm, vm:direct run Linux 6.1.0, container Linux 6.18.1",
        "vm:stock runs Linux 5.10, container Linux 6.18.1",
    ]


def test_other_numbers_of_cpus_seen_are_told() -> None:
    """Equal CPUs to use do not make equal CPUs to see."""
    record = run()
    record["receipts"][0]["receipt"]["cpus_online"] = "0"
    record["receipts"][1]["receipt"]["cpus_online"] = "0-1"
    (finding,) = from_run(record, [])
    assert (finding.code, finding.level) == ("cpus-seen-differ", "info")


def test_memory_that_was_not_given_is_told() -> None:
    """Beyond 2 % of the limit the arms did not have the same memory."""
    record = run()
    record["receipts"][0]["receipt"]["mem_available_bytes"] = str(490 << 20)
    assert codes(record, []) == {"memory-basis-off"}
    record["plan"]["workloads"][0]["limits"]["memory_basis"] = "nominal"
    assert codes(record, []) == set()


def test_an_image_cached_twice_is_a_problem() -> None:
    """Neither way of mounting it past the page cache worked."""
    record = run(descriptions={"container": {"image_direct_io": False}})
    assert codes(record, []) == {"image-cached-twice"}
    assert doubly_cached(record) == ["container"]


def test_disturbed_blocks_are_counted_once() -> None:
    """Stolen time and swapping are told by block, whatever the number of trials."""
    trials = [trial("vm", steal_cpus=0.2) | {"block": 1}, trial("container", steal_cpus=0.3)
              | {"block": 1}, trial("vm", steal_cpus=0.01) | {"block": 2}]  # fmt: skip
    (finding,) = from_run(run(), trials)
    assert finding.code == "blocks-disturbed" and "in 1 of 2 blocks" in finding.message


def test_the_state_of_the_host_is_told_by_arm() -> None:
    """Restless host, cold files, CPUs shared with the harness."""
    trials = [trial("vm", settle_flagged=1.0, image_resident=0.9), trial("container")]
    assert codes(run(), trials) == {"host-not-quiet", "page-cache-cold"}
    assert codes(run(), [trial("vm", harness_shares_cpu=1.0)]) == {"harness-shares-cpus"}


def test_what_kept_trials_from_settling_is_named() -> None:
    """The finding counts the conditions that were not met, the commonest first."""
    trials = [
        trial("vm", settle_flagged=1.0, settle_unmet_procs_running=1.0, settle_unmet_psi_cpu=flag)
        for flag in (0.0, 1.0)
    ]
    (finding,) = from_run(run(), trials)
    assert finding.message.endswith("(run queue 2×, tasks waiting for a CPU 1×)")
    assert set(CONDITIONS) == set(LIMITS), "every condition has a name there"


def test_trials_without_a_gap_are_told() -> None:
    """Nobody looked whether the host had settled: that is said, not passed over."""
    record = run()
    record["plan"]["gap"] = "none"
    (finding,) = from_run(record, [])
    assert (finding.code, finding.level) == ("no-gap", "warning")
    assert "not separated by a settled host" in finding.message


def test_settings_that_were_changed_are_told() -> None:
    """Whether for this run or before it, and which."""
    kept = {"settings": ["thp", "irq"], "measured_cpus": [3], "for_this_run": True}
    (finding,) = from_run(run(tuning=kept), [])
    assert finding.code == "host-tuned" and finding.level == "info"
    assert "for the time of this run: thp, irq (CPUs of instances: 3)" in finding.message
    (finding,) = from_run(run(tuning={**kept, "for_this_run": False}), [])
    assert "before this run" in finding.message
    assert codes(run(tuning=None), []) == set()


def flushed(arm: str, count: float) -> dict[str, Any]:
    """A trial in which so many flushes reached the scratch disk's file."""
    return {**trial(arm), "samples": [{"metric": "disk_flushes", "value": count}]}


def test_flushes_of_a_scratch_disk_must_agree() -> None:
    """A few more are the kernels' own; a tenth fewer means that less was made durable."""
    for own, other, code in (
        (40.0, 41.0, "scratch-disks-declared"),
        (400.0, 436.0, "scratch-disks-declared"),
        (40.0, 20.0, "flushes-differ"),
        (400.0, 450.0, "flushes-differ"),
        (20.0, 0.0, "flushes-differ"),
    ):
        assert codes(run(), [flushed("vm", own), flushed("container", other)]) == {code}
    assert codes(run(), [flushed("vm", 40.0), trial("container")]) == set()


def at_once(worker: float, harness: float, inside: float, queued: float, cpus: float = 1.0) -> Any:
    """The finding about 20 instances launched at once, while these were busy."""
    record = run()
    (workload,) = record["plan"]["workloads"]
    workload["together"] = 20
    workload["limits"]["cpus"] = cpus
    values = {
        "worker_busy": worker,
        "harness_busy": harness,
        "instances_busy": inside,
        "launches_queued": queued,
    }
    measured = []
    for factor in (0.9, 1.0, 5.0):  # the median counts, and not one trial of its own kind
        made = trial("container")
        samples = [{"metric": name, "value": factor * value} for name, value in values.items()]
        measured.append({**made, "samples": samples})
    (finding,) = from_run(record, [*measured, {**trial("vm"), "samples": []}])
    return finding


def test_who_was_the_limit_of_a_parallel_launch() -> None:
    """Hvct itself, by CPU time or by making one after the other; else what else it was."""
    for case, who in (
        ((0.95, 0.2, 0.3, 0.1), "our helper process was the limit"),
        ((0.2, 0.95, 0.3, 0.1), "the harness was the limit"),
        ((0.2, 0.1, 0.3, 0.7), "our helper process was the limit"),
    ):
        finding = at_once(*case)
        assert (finding.code, finding.level) == ("launch.worker-limit", "warning")
        assert who in finding.message and finding.message.startswith("container: 20 of redis")
        assert finding.remedy
    free = at_once(0.2, 0.1, 0.3, 0.2)
    assert (free.code, free.level) == ("launch.limit", "info")
    assert "kernel" in free.meaning
    # Launches wait for a helper that itself waits for the instances' CPU.
    pinned = at_once(0.2, 0.1, 0.95, 0.7)
    assert pinned.code == "launch.limit" and "CPUs that all of them are pinned" in pinned.meaning
    assert "kernel" in at_once(0.2, 0.1, 0.95, 0.2, cpus=2.0).meaning


def test_one_at_a_time_has_no_such_limit() -> None:
    """Runs of before, and workloads of one instance, are not spoken of."""
    record = run()
    record["plan"]["workloads"][0]["together"] = 1
    assert codes(record, [trial("vm"), trial("container")]) == set()

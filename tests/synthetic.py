"""Run directories made up from a seed: what a report is tested on, without measuring anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench import schedule
from bench.metrics import METRICS
from bench.plan import FAIRNESS
from bench.store import jsonable

MIB = 1 << 20
ARMS = ("vm", "container", "process")
START = {"process": 0.0031, "container": 0.0052, "vm": 1.31}
"""Seconds from the request to the workload's exec."""
WARM = {"process": 1.0, "container": 1.02, "vm": 7.2}
"""How much longer the workload's own start takes than on the bare host."""
WORKLOADS: dict[str, dict[str, Any]] = {
    "minimal": {"title": "minimal command", "own": 0.0004, "memory": 0.35, "argv": ["/bin/true"]},
    "redis": {"title": "redis to PING", "own": 0.0041, "memory": 2.9, "argv": ["redis-server"]},
    "nginx": {"title": "nginx to HTTP 200", "own": 0.0063, "memory": 3.4, "argv": ["nginx"]},
    "touch64": {
        "title": "touch 64 MiB",
        "own": 0.021,
        "memory": 64.4,
        "argv": ["python3", "-c", "b = bytearray(64 << 20)"],
    },
    "xz": {
        "title": "xz of 16 MiB",
        "own": 0.0012,
        "memory": 9.1,
        "argv": ["xz", "-9", "-k", "/data/corpus"],
        "work_units": 16.0,
        "cpu": 1.9,
    },
}


def metrics() -> dict[str, dict[str, Any]]:
    """The metrics of a run, as run.json holds them."""
    return {name: jsonable(metric) for name, metric in METRICS.items()}


def workload(name: str) -> dict[str, Any]:
    """One workload as run.json's plan has it."""
    about = WORKLOADS.get(name, {"title": name, "argv": [name]})
    return {
        "name": name,
        "title": about["title"],
        "image": "default",
        "argv": about["argv"],
        "env": [],
        "ready": {"kind": "tcp" if name in {"redis", "nginx"} else "output", "port": 0},
        "until": "ready" if name in {"redis", "nginx"} else "exit",
        "limits": {"cpus": 1.0, "memory_bytes": 512 * MIB, "memory_basis": "usable"},
        "network": "bridge" if name in {"redis", "nginx"} else "none",
        "work_units": about.get("work_units", 0.0),
        "work_unit_name": "MiB" if about.get("work_units") else "work",
    }


def accelerator(arm: str, kind: str) -> dict[str, Any]:
    """The accelerator of a trial of this arm."""
    if not arm.startswith("vm"):
        return {"kind": "none", "reason": "", "nested": False}
    reason = (
        "/dev/kvm is there, but a guest ran at 1.8 MIPS and stopped on cmpxchg16b"
        if kind == "tcg"
        else "a payload and the real kernel ran under it"
    )
    return {"kind": kind, "reason": reason, "nested": False}


def run_record(
    *,
    run_id: str = "20261123-2041-quick",
    arms: tuple[str, ...] = ARMS,
    workloads: tuple[str, ...] = tuple(WORKLOADS),
    blocks: int = 10,
    seed: int = 7421,
    kind: str = "tcg",
) -> dict[str, Any]:
    """A run.json."""
    primary = [
        [name, item]
        for name, item in (
            ("startup_ready", "redis"),
            ("startup_ready", "nginx"),
            ("startup_started", "minimal"),
            ("memory_current", "redis"),
            ("work_per_cpu_second", "xz"),
        )
        if item in workloads
    ]
    return {
        "format": 1,
        "id": run_id,
        "created": "2026-11-23T20:41:07+00:00",
        "ended": "2026-11-23T20:46:02+00:00",
        "seed": seed,
        "hvct_version": "0.1.0",
        "plan": {
            "name": "quick",
            "experiment": "startup",
            "arms": list(arms),
            "baseline": "container",
            "workloads": [workload(name) for name in workloads],
            "blocks": blocks,
            "margins": {"startup_ready": 0.05, "memory_current": 2 * MIB},
            "primary": primary,
            "alpha": 0.05,
            "fairness": dict(FAIRNESS),
        },
        "metrics": metrics(),
        "images": {
            "default": {
                "digest": "sha256:6b1f0c9e" + "a4" * 28,
                "source": "mmdebstrap bookworm, 14 packages",
                "size_bytes": 378 * MIB,
                "architecture": "amd64",
            }
        },
        "host": {
            "cpu": {
                "model": "AMD EPYC 7B13",
                "architecture": "x86_64",
                "microarchitecture": "zen3",
                "count": 2,
                "usable": 2,
                "governor": None,
                "turbo": None,
                "smt": True,
                "hypervisor": "KVM",
                "virtualisation": "svm",
            },
            "memory": {"total_bytes": 25232932864, "swap_bytes": 0, "thp": "madvise", "ksm": 0},
            "kernel": {
                "release": "6.18.5-cloud",
                "command_line": "mitigations=auto",
                "mitigations": {"meltdown": "Not affected", "spectre_v2": "Retpolines; IBPB"},
                "clocksource": "tsc",
                "file_systems": ["erofs", "overlay"],
            },
            "cgroup": {"version": 1, "controllers": ["cpu", "memory", "pids"], "unified": False},
            "distribution": "Debian GNU/Linux 12 (bookworm)",
            "programs": {"qemu": "7.2.19", "libvirt": "9.0.0", "skopeo": None},
            "python": "3.11.2",
            "boot_id": "5c1f9d9e-7c2c-4f0e-8d58-0d9b6d0c3b11",
        },
        "capabilities": [
            {
                "backend": arm,
                "usable": True,
                "reason": "",
                "remedy": "",
                "version": "libvirt 9.0.0, QEMU 7.2.9" if arm.startswith("vm") else "hvct 0.1.0",
                "accelerator": accelerator(arm, kind),
                "details": {},
            }
            for arm in arms
        ],
        "identity": {},
        "receipts": [
            {
                "arm": arm,
                "workload": name,
                "receipt": {
                    **receipt(arm, name),
                    "content": ["/usr/bin/x 0f3a", "/lib/x86_64-linux-gnu/libc.so.6 77c1"],
                    "image": "sha256:6b1f0c9e" + "a4" * 28,
                },
            }
            for name in workloads
            for arm in arms
        ],
        "descriptions": {
            "vm": {
                "root": "virtio-blk, read-only, erofs",
                "libvirt": "qemu:///embed",
                "domain_xml": "<domain type='qemu'>\n  <name>hvct-r3f9a-0001</name>\n"
                "  <memory unit='KiB'>589824</memory>\n  <vcpu>1</vcpu>\n</domain>\n",
            },
            "container": {"root": "loop device, direct I/O", "join": "cgroup v1, before exec"},
            "process": {"root": "loop device, direct I/O", "namespaces": "mount"},
        },
        "findings": [
            {
                "code": "guest-kernel-differs",
                "level": "warning",
                "message": "the guest runs Linux 6.1.0-cloud, the host Linux 6.18.5-cloud",
                "meaning": "system call, network, disk and memory rows mix kernel version and "
                "virtualisation",
                "remedy": "add the arm vm:hostkernel",
            },
            {
                "code": "few-cpus",
                "level": "info",
                "message": "the harness shares 2 CPUs with the instances",
                "meaning": "readiness probes take CPU from what is measured",
                "remedy": "use a host with 4 CPUs or more",
            },
        ],
        "command": "hvct compare --blocks 10 --seed 7421",
    }


def receipt(arm: str, workload_name: str) -> dict[str, Any]:
    """What the agent of this arm reports about this workload."""
    about = WORKLOADS.get(workload_name, {"argv": [workload_name]})
    vm = arm.partition(":")[0] == "vm"
    return {
        "arg": about["argv"],
        "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
        "cwd": "/",
        "uid": "0",
        "gid": "0",
        "program": f"/usr/bin/{about['argv'][0].rpartition('/')[2]}",
        "program_inode": "18231",
        "cpus_allowed": "1",
        "cpu_flags": "fpu vme de pse tsc msr pae",
        "hostname": "host-a" if arm == "process" else "hvct",
        "pid": "1" if vm or arm == "container" else "23144",
        "release": "6.1.0-28-cloud-amd64" if vm else "6.18.5-cloud",
        "clocksource": "kvm-clock" if vm else "tsc",
        "cpu_model": "QEMU Virtual CPU" if vm else "AMD EPYC 7B13",
        "mem_total_bytes": str(536870912 if vm else 25232932864),
        "cap_effective": "00000000a80425fb" if arm == "container" else "000001ffffffffff",
        "seccomp": "2" if arm == "container" else "0",
    }


def trial(
    random: np.random.Generator, arm: str, name: str, block: int, position: int, kind: str
) -> dict[str, Any]:
    """One trial that went well, with figures like those of a small host."""
    about = WORKLOADS.get(name, {"own": 0.002, "memory": 1.0})
    base = arm.partition(":")[0]
    emulation = 1.0 if kind == "tcg" else 0.22

    def noisy(value: float, spread: float = 0.06) -> float:
        return float(value * np.exp(random.normal(0.0, spread)))

    slow = emulation if base == "vm" else 1.0
    spawned = noisy(START[base] * (0.09 if base == "vm" else 0.35))
    init = spawned + noisy(START[base] * (0.80 if base == "vm" else 0.35) * slow)
    started = init + noisy(0.006 * slow if base == "vm" else 0.0009)
    ready = started + noisy(about["own"] * (WARM[base] if kind == "tcg" else 1.05))
    cpu = noisy(
        about.get("cpu", about["own"]) * (9.6 if base == "vm" and kind == "tcg" else 1.0), 0.015
    )
    held = name in {"redis", "nginx"}
    exited = ready + noisy(0.2 if held else max(cpu, 0.0005), 0.02)
    released = exited + noisy({"process": 0.002, "container": 0.009, "vm": 0.11}[base])
    own = {"process": 0.3, "container": 0.4, "vm": 118.0}[base]
    anon = noisy((about["memory"] + own) * MIB, 0.008)
    kernel = noisy({"process": 0.35, "container": 0.6, "vm": 2.3}[base] * MIB, 0.03)
    shmem = noisy(0.1 * MIB, 0.02)
    file = noisy(0.2 * MIB, 0.1)
    timeline = {
        "requested": 0.0,
        "accepted": spawned * 0.4,
        "spawned": spawned,
        **({"kernel": spawned + (init - spawned) * 0.3} if base == "vm" else {}),
        "init": init,
        "started": started,
        "ready": ready,
        **({"stop_requested": exited - 0.003} if held else {}),
        "exited": exited,
        "released": released,
        **({"network_released": released + noisy(0.02)} if held else {}),
    }
    values = {
        "startup_accepted": timeline["accepted"],
        "startup_spawned": spawned,
        "startup_init": init,
        "startup_started": started,
        "startup_ready": ready,
        "agent_overhead": started - init,
        "teardown": released - exited,
        "memory_current": anon + kernel + shmem + file,
        "memory_anon": anon,
        "memory_kernel": kernel,
        "memory_file": file,
        "memory_shmem": shmem,
        "memory_peak": (anon + kernel + shmem + file) * 1.04,
        "memory_pss": anon * 1.05,
        "memory_rss": anon * 1.11 + 6 * MIB,
        "memory_host_delta": (anon + kernel) * 1.02 + float(random.normal(0, 0.4 * MIB)),
        "cpu_window": cpu,
        "cpu_life": cpu + (1.2 if base == "vm" else 0.004),
    }
    if base == "vm":
        values["startup_kernel"] = timeline["kernel"]
    if held:
        values["network_teardown"] = timeline["network_released"] - released
        values["cpu_idle"] = noisy({"process": 0.002, "container": 0.002, "vm": 0.031}[base], 0.1)
    else:
        values["run_wall"] = exited - started
    if about.get("work_units"):
        values["work_per_cpu_second"] = about["work_units"] / cpu
    table = metrics()
    return {
        "format": 1,
        "block": block,
        "attempt": 1,
        "position": position,
        "arm": arm,
        "workload": name,
        "outcome": "ok",
        "error": None,
        "timeline": {event: round(at, 9) for event, at in timeline.items()},
        "resolution": {"ready": 0.0005, **({"init": 0.00006} if base == "vm" else {})},
        "samples": [
            {"metric": key, "value": value, "unit": table[key]["unit"]}
            for key, value in values.items()
        ],
        "usage": {"memory": {"anon_bytes": int(anon)}, "cpu": {"total_s": cpu}},
        "receipt": receipt(arm, name),
        "disturbances": {
            "steal_cpus": abs(float(random.normal(0.001, 0.001))),
            "psi_cpu": abs(float(random.normal(0.02, 0.01))),
            "other_cpus": abs(float(random.normal(0.05, 0.03))),
            "context_switches_per_s": abs(float(random.normal(900, 200))),
            "writeback_bytes": 0.0,
            "image_resident": 1.0,
            "flagged": 0.0,
        },
        "accelerator": accelerator(arm, kind),
        "logs": None,
        "wall_time": f"2026-11-23T20:{41 + block // 3:02d}:{position % 60:02d}+00:00",
    }


def spoil(line: dict[str, Any], outcome: str, error: str) -> None:
    """Turn a trial into one that did not go well: no figure of it counts."""
    reached = {"failed": "started", "timeout": "started", "refused": "requested"}[outcome]
    line["outcome"], line["error"] = outcome, error
    at = line["timeline"][reached]
    line["timeline"] = {k: v for k, v in line["timeline"].items() if v <= at}
    line["samples"] = []


def trials(
    record: Mapping[str, Any],
    *,
    seed: int = 1,
    change: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Every trial of a run, in random order inside each block."""
    random = np.random.default_rng(seed)
    plan = record["plan"]
    kind = record["capabilities"][0]["accelerator"]["kind"]
    names = [item["name"] for item in plan["workloads"]]
    lines = []
    for slot in schedule.build(plan["arms"], names, plan["blocks"], record["seed"]):
        line = trial(random, slot.arm, slot.workload, slot.block, slot.position, kind)
        if change is not None:
            change(line)
        lines.append(line)
    return lines


def write_run(
    folder: Path,
    *,
    seed: int = 1,
    change: Callable[[dict[str, Any]], None] | None = None,
    record: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a whole synthetic run directory and return it.

    Args:
        change: called with each trial line before it is written; may edit it in place.
        record: the run.json, else `run_record(**options)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = run_record(**options) if record is None else record
    (folder / "run.json").write_text(json.dumps(record, indent=1))
    with (folder / "trials.jsonl").open("w") as handle:
        for line in trials(record, seed=seed, change=change):
            handle.write(json.dumps(line) + "\n")
    return folder


def scale_arm(line: dict[str, Any], arm: str, factor: float) -> None:
    """Multiply all the figures of one arm's trial."""
    if line["arm"] != arm:
        return
    for sample in line["samples"]:
        if sample["metric"] == "work_per_cpu_second":
            sample["value"] /= factor
        else:
            sample["value"] *= factor
    line["timeline"] = {event: at * factor for event, at in line["timeline"].items()}

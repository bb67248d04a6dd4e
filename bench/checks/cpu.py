"""What changes how fast CPUs are, and who else has them."""

from __future__ import annotations

import re

from bench.checks.trap import Trap, plural
from bench.checks.tree import Tree

CPUS = "/sys/devices/system/cpu"
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
DEEP_US = 100  # exit latency of an idle state from which a wake-up shows in a start-up time
STOLEN = 0.01  # of the time since boot


def governor(tree: Tree) -> str | None:
    """A frequency policy that reacts to load."""
    files = tree.glob(f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor")
    found = sorted({tree.text(tree.name(path)) or "" for path in files} - {"", "performance"})
    return f"the CPU frequency governor is {', '.join(found)}" if found else None


def turbo(tree: Tree) -> str | None:
    """Frequencies above the nominal one."""
    off, boost = tree.number(f"{CPUS}/intel_pstate/no_turbo"), tree.number(f"{CPUS}/cpufreq/boost")
    on = off == 0 if off is not None else boost == 1
    return "the CPUs may run above their nominal frequency (turbo)" if on else None


def smt(tree: Tree) -> str | None:
    """Two threads on one core."""
    on = tree.number(f"{CPUS}/smt/active") == 1
    return "hardware threads share cores (SMT)" if on else None


def few(tree: Tree) -> str | None:
    """No CPU to spare for the harness."""
    count = tree.cpu_count
    return f"this host has {plural(count, 'CPU')}" if 0 < count < 3 else None


def guest(tree: Tree) -> str | None:
    """A hypervisor below."""
    return "this host is itself a guest" if is_guest(tree) else None


def is_guest(tree: Tree) -> bool:
    """Whether the CPU, or the firmware, says that there is a hypervisor below."""
    kind = tree.text("/sys/hypervisor/type")
    return "hypervisor" in tree.cpu_flags or kind not in (None, "", "none")


def clock_source(tree: Tree) -> str | None:
    """A clock that is slow to read."""
    name = tree.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return f"the kernel's clock source is {name}" if name and name not in GOOD_CLOCKS else None


def numa(tree: Tree) -> str | None:
    """Memory that is nearer to some CPUs."""
    count = len(tree.glob("/sys/devices/system/node/node[0-9]*"))
    return f"this host has {count} NUMA nodes" if count > 1 else None


def unequal(tree: Tree) -> str | None:
    """CPUs of several kinds."""
    if tree.there("/sys/devices/cpu_core") and tree.there("/sys/devices/cpu_atom"):
        return "this host has fast and slow cores"
    files = tree.glob(f"{CPUS}/cpu[0-9]*/cpu_capacity")
    kinds = {tree.text(tree.name(path)) for path in files}
    return f"this host has CPUs of {len(kinds)} kinds" if len(kinds) > 1 else None


def isolated(tree: Tree) -> str | None:
    """CPUs that the scheduler leaves alone."""
    found = tree.text(f"{CPUS}/isolated")
    return f"CPUs {found} are isolated from the scheduler" if found else None


def deep_idle(tree: Tree) -> str | None:
    """Idle states that take long to leave."""
    folder = f"{CPUS}/cpu0/cpuidle"
    deepest = max(
        (
            tree.number(tree.name(state / "latency")) or 0
            for state in tree.glob(f"{folder}/state[0-9]*")
            if tree.number(tree.name(state / "disable")) != 1
        ),
        default=0,
    )
    return f"an idle CPU may take {deepest} µs to wake up" if deepest >= DEEP_US else None


def mitigations_off(tree: Tree) -> str | None:
    """Protections switched off at boot."""
    off = re.search(r"\b(mitigations=off|nopti|nospectre_v\d|pti=off)\b",
                    tree.text("/proc/cmdline") or "")  # fmt: skip
    return f"mitigations of CPU flaws are switched off ({off[1]})" if off else None


def vulnerable(tree: Tree) -> str | None:
    """Flaws that this kernel or microcode does nothing about."""
    names = [
        path.name
        for path in tree.glob(f"{CPUS}/vulnerabilities/*")
        if (tree.text(tree.name(path)) or "").startswith("Vulnerable")
    ]
    return f"nothing is done about {', '.join(names)}" if names else None


def stolen(tree: Tree) -> str | None:
    """Time that the hypervisor below gave to others, since boot."""
    line = next((x for x in (tree.text("/proc/stat") or "").splitlines() if x[:4] == "cpu "), "")
    ticks = [int(word) for word in line.split()[1:9]]
    if len(ticks) < 8 or not sum(ticks):
        return None
    share = ticks[7] / sum(ticks)
    return f"{share:.1%} of the CPU time since boot was stolen" if share > STOLEN else None


def affinity(tree: Tree) -> str | None:
    """A process that may not use every CPU."""
    allowed = tree.fields("/proc/self/status").get("Cpus_allowed_list", "")
    count = sum(
        int(last or first) - int(first) + 1
        for first, _, last in (part.partition("-") for part in allowed.split(",") if part)
    )
    if 0 < count < tree.cpu_count:
        return f"hvct may use {count} of {tree.cpu_count} CPUs"
    return None


def niceness(tree: Tree) -> str | None:
    """A priority that containers inherit and guests do not."""
    fields = (tree.text("/proc/self/stat") or "").rpartition(") ")[2].split()
    nice = int(fields[16]) if len(fields) > 16 else 0  # field 19 of proc(5), less pid and name
    return f"hvct runs at nice {nice}" if nice else None


TRAPS = (
    Trap(
        "cpu.governor", "warning", governor,
        "short trials run before the frequency has risen; start-up times spread more",
        "cpupower frequency-set -g performance",
    ),
    Trap(
        "cpu.turbo", "info", turbo,
        "speed depends on temperature and on how many CPUs are busy; blocks balance it",
        f"echo 1 > {CPUS}/intel_pstate/no_turbo, or echo 0 > {CPUS}/cpufreq/boost",
    ),
    Trap(
        "cpu.smt", "info", smt,
        "an instance is slower while its sibling thread works; hvct keeps harness and probes "
        "off siblings where there are other CPUs",
        f"echo off > {CPUS}/smt/control for the time of the run",
    ),
    Trap(
        "cpu.few", "info", few,
        "the harness and its probes share CPUs with the instance; the sharing is reported",
        "a host with four or more CPUs keeps them apart",
    ),
    Trap(
        "cpu.guest", "warning", guest,
        "a virtual machine on it is nested; stolen time is recorded with every trial, "
        "frequency and neighbours of the machine below are unknown",
        "run on bare metal to judge virtualisation itself",
    ),
    Trap(
        "cpu.clocksource", "warning", clock_source,
        "reading the time takes microseconds instead of nanoseconds, in every arm",
        "look in the kernel's log for why tsc was found unstable",
    ),
    Trap(
        "cpu.numa", "info", numa,
        "an instance is pinned to the last CPUs, its memory may lie on another node",
        "numactl --cpunodebind=1 --membind=1 hvct …, with the node of the last CPUs",
    ),
    Trap(
        "cpu.unequal", "warning", unequal,
        "an instance is pinned to the last CPUs, which may be the slow ones, while the harness "
        "has the fast ones; every arm gets the same",
        "taskset -c with CPUs of one kind before hvct",
    ),
    Trap(
        "cpu.isolated", "info", isolated,
        "instances are pinned to CPUs that hvct may use, isolated or not; on isolated ones "
        "several threads of an instance stay on one CPU",
        "taskset -c with CPUs of one kind before hvct",
    ),
    Trap(
        "cpu.idle-states", "info", deep_idle,
        "every wait in a start-up may end that much later; virtual machines wait more often",
        "cpupower idle-set -D 50 for the time of the run",
    ),
    Trap(
        "cpu.mitigations-off", "warning", mitigations_off,
        "system calls and exits of virtual machines are cheaper than on hosts that are in use; "
        "the guest's kernel still has its own mitigations on",
        "boot without it, or say so wherever the figures are used",
    ),
    Trap(
        "cpu.vulnerable", "info", vulnerable,
        "protections cost time in system calls and in exits of virtual machines: with them "
        "both arms would be slower, not equally",
        "install the CPU's microcode, update the kernel",
    ),
    Trap(
        "cpu.stolen", "warning", stolen,
        "others on the machine below take CPUs away; trials in which it happens are marked",
        "a machine with CPUs of its own",
    ),
    Trap(
        "cpu.nice", "warning", niceness,
        "containers and processes inherit it, what runs in a guest does not: receipts differ, and "
        "every comparison with a VM is refused",
        "start hvct without nice",
    ),
    Trap(
        "cpu.affinity", "info", affinity,
        "instances and harness share these; the rest of the host stays free for others",
        "start hvct without taskset, or outside the container or slice that says so",
    ),
)  # fmt: skip

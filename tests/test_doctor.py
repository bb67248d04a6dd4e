"""Every finding says what was seen, what it means for the numbers, and what to do.

Over 400 lines, most of them a table: one row for each trap.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import faults
import pytest

from bench import disturbances, doctor, network
from bench.arms import ARMS
from bench.cgroupfs import Layout
from bench.checks import distributions, live, programs
from bench.checks.kernel import has
from bench.checks.live import Clocks
from bench.checks.trap import spring
from bench.checks.tree import Tree
from bench.commands.doctor import print_finding
from bench.context import runtime_root
from bench.host import Facts
from bench.model import Accelerator, Capability, Finding

CHECKOUT = Path(__file__).resolve().parent.parent
FLAGS = "flags\t\t: fpu vme constant_tsc vmx"
CALM = {  # a host that nothing is to be said about, as files
    "/etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"',
    "/proc/cmdline": "root=/dev/sda1 quiet",
    "/proc/cpuinfo": "\n\n".join(f"processor\t: {number}\n{FLAGS}" for number in range(4)),
    "/proc/filesystems": "nodev\tproc\nnodev\toverlay\n\terofs\n",
    "/proc/loadavg": "0.10 0.20 0.30 1/200 4000",
    "/proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nSwapTotal: 0 kB\n"
    "HugePages_Total: 0\nHugepagesize: 2048 kB",
    "/proc/modules": "kvm_intel 1 0 - Live 0x0",
    "/proc/self/cgroup": "0::/user.slice/session-1.scope",
    "/proc/self/ns/pid": "-> pid:[4026531836]",
    "/proc/self/stat": "77 (a) b) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 100 0",
    "/proc/self/status": "Name:\thvct\nCpus_allowed_list:\t0-3\nNoNewPrivs:\t0\nSeccomp:\t0",
    "/proc/stat": "cpu  1000 0 1000 8000 0 0 0 0 0 0",
    "/proc/sys/kernel/osrelease": "6.12.9-amd64",
    "/proc/sys/kernel/random/entropy_avail": "256",
    "/proc/1/comm": "systemd",
    "/lib/modules/6.12.9-amd64/modules.dep": "kernel/net/bridge/bridge.ko.xz:\n"
    "kernel/drivers/net/veth.ko.xz:",
    "/dev/kvm": "",
    "/dev/net/tun": "",
    "/dev/loop-control": "",
    "/dev/vhost-net": "",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu memory pids",
    "/sys/fs/cgroup/user.slice/cpu.max": "max 100000",
    "/sys/fs/cgroup/user.slice/memory.max": "max",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "/sys/kernel/mm/ksm/run": "0",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/devices/system/cpu/smt/active": "0",
    "/sys/devices/system/cpu/vulnerabilities/meltdown": "Mitigation: PTI",
    "/sys/devices/system/node/node0/cpulist": "0-3",
}
CPU = "/sys/devices/system/cpu"
V1 = "/sys/fs/cgroup"
CASES: dict[str, dict[str, str | None]] = {  # code → what is different there; None: no such file
    "kernel.old": {
        "/proc/sys/kernel/osrelease": "5.4.0-amd64", "/proc/modules": None,
        "/sys/module/bridge/x": "", "/sys/module/veth/x": "",
    },
    "kernel.modules-gone": {
        "/proc/sys/kernel/osrelease": "6.12.10-amd64",
        "/sys/module/bridge/x": "", "/sys/module/veth/x": "",
    },
    "kernel.erofs": {"/proc/filesystems": "nodev\toverlay"},
    "kernel.overlay": {"/proc/filesystems": "nodev\terofs"},
    "kernel.bridge": {"/lib/modules/6.12.9-amd64/modules.dep": "kernel/drivers/net/veth.ko:"},
    "kernel.veth": {"/lib/modules/6.12.9-amd64/modules.dep": "kernel/net/bridge/bridge.ko:"},
    "kernel.erofs-file": {
        "/proc/sys/kernel/osrelease": "6.1.0-9-amd64", "/proc/modules": None,
        "/sys/module/bridge/x": "", "/sys/module/veth/x": "",
    },
    "kernel.entropy": {"/proc/sys/kernel/random/entropy_avail": "12"},
    "kernel.core-pattern": {"/proc/sys/kernel/core_pattern": "|/usr/lib/systemd/coredump %P"},
    "device.tun": {"/dev/net/tun": None},
    "device.loop": {"/dev/loop-control": None},
    "device.vhost-net": {"/dev/vhost-net": None},
    "kvm.no-hardware": {
        "/dev/kvm": None, "/proc/cpuinfo": CALM["/proc/cpuinfo"].replace(" vmx", "")
    },
    "kvm.not-loaded": {"/dev/kvm": None},
    "kvm.halt-polling": {"/sys/module/kvm/parameters/halt_poll_ns": "200000"},
    "host.distribution": {"/etc/os-release": "ID=fedora\nVERSION_ID=43\nPRETTY_NAME=Fedora"},
    "host.container": {"/.dockerenv": "", "/proc/self/ns/pid": "-> pid:[4026532222]"},
    "cgroup.cpu-quota": {"/sys/fs/cgroup/user.slice/cpu.max": "150000 100000"},
    "cgroup.memory-limit": {"/sys/fs/cgroup/user.slice/memory.max": "4294967296"},
    "cgroup.pid-limit": {"/sys/fs/cgroup/user.slice/session-1.scope/pids.max": "512"},
    "cgroup.user-slice": {
        "/proc/self/cgroup": "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope",
        f"{V1}/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "memory pids",
    },
    "security.seccomp": {"/proc/self/status": "NoNewPrivs:\t0\nSeccomp:\t2"},
    "security.no-seccomp": {"/proc/self/status": "NoNewPrivs:\t0"},
    "security.no-new-privs": {"/proc/self/status": "NoNewPrivs:\t1\nSeccomp:\t0"},
    "security.apparmor": {
        "/sys/module/apparmor/parameters/enabled": "Y",
        "/proc/self/attr/current": "docker-default (enforce)",
    },
    "security.selinux": {"/sys/fs/selinux/enforce": "1"},
    "security.user-namespaces": {"/proc/sys/user/max_user_namespaces": "0"},
    "memory.swap": {
        "/proc/meminfo": CALM["/proc/meminfo"].replace("SwapTotal: 0", "SwapTotal: 1000000")
    },
    "memory.ksm": {"/sys/kernel/mm/ksm/run": "1"},
    "memory.thp": {"/sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"},
    "memory.huge-pages": {
        "/proc/meminfo": CALM["/proc/meminfo"].replace("Pages_Total: 0", "Pages_Total: 512")
    },
    "memory.low": {"/proc/meminfo": CALM["/proc/meminfo"].replace("12000000", "1000000")},
    "memory.overcommit": {"/proc/sys/vm/overcommit_memory": "2"},
    "cpu.governor": {f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave"},
    "cpu.turbo": {f"{CPU}/intel_pstate/no_turbo": "0"},
    "cpu.smt": {f"{CPU}/smt/active": "1"},
    "cpu.guest": {"/proc/cpuinfo": CALM["/proc/cpuinfo"].replace("vmx", "vmx hypervisor")},
    "cpu.clocksource": {
        "/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"
    },
    "cpu.numa": {"/sys/devices/system/node/node1/cpulist": ""},
    "cpu.unequal": {f"{CPU}/cpu0/cpu_capacity": "1024", f"{CPU}/cpu1/cpu_capacity": "446"},
    "cpu.isolated": {f"{CPU}/isolated": "2-3"},
    "cpu.idle-states": {f"{CPU}/cpu0/cpuidle/state3/latency": "890"},
    "cpu.mitigations-off": {"/proc/cmdline": "root=/dev/sda1 mitigations=off"},
    "cpu.vulnerable": {f"{CPU}/vulnerabilities/mds": "Vulnerable: no microcode"},
    "cpu.stolen": {"/proc/stat": "cpu  1000 0 1000 7000 0 0 0 1000 0 0"},
    "cpu.nice": {
        "/proc/self/stat": "77 (a) b) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 22 2 1 0 100 0"
    },
    "cpu.affinity": {
        "/proc/self/status": "Cpus_allowed_list:\t0,2\nNoNewPrivs:\t0\nSeccomp:\t0"
    },
    "cpu.interrupts": {
        "/proc/irq/24/smp_affinity_list": "0-3", "/proc/irq/25/smp_affinity_list": "0",
    },
    "cpu.workqueues": {"/sys/devices/virtual/workqueue/cpumask": "00000000,0000000f"},
    "cpu.other-programs": {f"{V1}/system.slice/cpuset.cpus": "", f"{V1}/hvct/cpuset.cpus": ""},
    "load.average": {"/proc/loadavg": "9.00 8.50 8.00 9/200 4000"},
    "load.tenants": {"/proc/77/comm": "qemu-system-x86", "/proc/78/comm": "containerd-shim"},
}  # fmt: skip
TWO = {  # these are never alone: what they do to figures is another trap's matter too
    "memory.zswap": ({**CASES["memory.swap"], "/sys/module/zswap/parameters/enabled": "Y"},
                     {"memory.swap"}),
    "memory.numa-balancing": ({**CASES["cpu.numa"], "/proc/sys/kernel/numa_balancing": "1"},
                              {"cpu.numa"}),
    "cpu.few": ({"/proc/cpuinfo": f"processor : 0\n{FLAGS}"}, set()),
    "cgroup.swap-accounting": (
        {
            **CASES["memory.swap"],
            f"{V1}/cgroup.controllers": None,
            f"{V1}/memory/memory.limit_in_bytes": "9223372036854771712",
        },
        {"memory.swap"},
    ),
}  # fmt: skip


def host(folder: Path, files: dict[str, str | None]) -> Tree:
    """A host made of files; a text that begins with an arrow is a symbolic link."""
    for name, text in {**CALM, **files}.items():
        if text is None:
            continue
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text + "\n")
    return Tree(folder, "x86_64")


def codes(findings: list[Finding]) -> set[str]:
    """Their codes."""
    return {finding.code for finding in findings}


def test_a_calm_host_has_no_findings(tmp_path: Path) -> None:
    """Nothing is said about a host that has nothing to say."""
    assert list(spring(doctor.TRAPS, host(tmp_path, {}))) == []


@pytest.mark.parametrize("code", CASES)
def test_each_trap_is_found_with_meaning_and_remedy(code: str, tmp_path: Path) -> None:
    """One thing is different, one finding, with a consequence and a next step."""
    (finding,) = spring(doctor.TRAPS, host(tmp_path, CASES[code]))
    assert finding.code == code
    assert finding.level in doctor.LEVELS
    assert finding.message and finding.meaning and finding.remedy


@pytest.mark.parametrize("code", TWO)
def test_traps_that_come_with_others(code: str, tmp_path: Path) -> None:
    """They are found beside the one they come with."""
    files, others = TWO[code]
    assert codes(list(spring(doctor.TRAPS, host(tmp_path, files)))) == {code} | others


def test_another_architecture_says_what_is_untested(tmp_path: Path) -> None:
    """On aarch64 the untested parts are named; what only x86 has is not asked for."""
    tree = Tree(host(tmp_path, {"/proc/cpuinfo": "processor : 0\n\nprocessor : 1"}).root, "aarch64")
    found = {finding.code: finding for finding in spring(doctor.TRAPS, tree)}
    assert set(found) - {"cpu.affinity"} == {"host.architecture", "cpu.few"}
    assert "console" in found["host.architecture"].meaning


def test_a_device_that_is_forbidden(tmp_path: Path) -> None:
    """/dev/kvm without permission for this user is a trap of its own."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    tree = host(tmp_path, {})
    tree.path("/dev/kvm").chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        found = codes(list(spring(doctor.TRAPS, tree)))
    finally:
        os.seteuid(0)
    assert found == {"kvm.forbidden"}


def test_every_trap_is_tested_and_documented() -> None:
    """Each row of the tables has a case here, and stands in docs/doctor.md as it is said."""
    tested = {*CASES, *TWO, "host.architecture", "kvm.forbidden"}
    assert tested == {trap.code for trap in doctor.TRAPS}
    assert len(doctor.TRAPS) == len(tested)
    text = (CHECKOUT / "docs/doctor.md").read_text()
    for trap in doctor.TRAPS:
        assert f"| `{trap.code}` | {trap.level} | {trap.meaning} | {trap.remedy} |" in text
    files = ("checks/live.py", "checks/programs.py", "doctor.py")
    sources = "".join((CHECKOUT / "bench" / name).read_text() for name in files)
    for code in re.findall(r'Finding\(\s*f?"([a-z]+\.[a-z-]+)"', sources):
        assert f"`{code}`" in text, code


@pytest.mark.root
def test_this_host_is_examined() -> None:
    """All checks run here, the worst come first, and nothing is left behind."""
    found = doctor.examine([])
    levels = [doctor.LEVELS.index(finding.level) for finding in found]
    assert levels == sorted(levels)
    assert all(finding.message and finding.meaning for finding in found)
    assert "cgroup.refused" not in codes(found)
    for mount in Path("/sys/fs/cgroup").glob("*"):
        assert not (mount / "hvct" / "doctor").exists()


@pytest.mark.root
def test_json_has_the_documented_keys() -> None:
    """`hvct doctor --json` has the keys that docs/doctor.md promises, and no others."""
    done = faults.hvct("doctor", "--json")
    document = json.loads(done.out)
    assert done.code == (0 if document["usable"] else 3)
    text = (CHECKOUT / "docs/doctor.md").read_text()
    promised = set(
        re.findall(r"^\| `(\w+)` \|", text.partition("## For programs")[2], re.MULTILINE)
    )
    assert set(document) == promised
    probed = [item for key in ("capabilities", "optional", "peers") for item in document[key]]
    assert {item["backend"] for item in probed} == set(ARMS)
    assert all(item["usable"] or item["reason"] for item in probed)
    for finding in document["findings"]:
        assert set(finding) == {"code", "level", "message", "meaning", "remedy"}
    checked = {item["code"] for item in document["checks"]}
    assert checked == {trap.code for trap in doctor.TRAPS}
    assert {item["code"] for item in document["checks"] if item["found"]} <= codes(
        [Finding(**finding) for finding in document["findings"]]
    )


def test_an_emulated_vm_is_a_warning_about_every_figure() -> None:
    """TCG is usable, and its figures describe an emulator."""
    tcg = Capability("vm", True, accelerator=Accelerator("tcg", "the payload never ended"))
    (finding,) = live.accelerator([tcg])
    assert finding.code in ("kvm.unproven", "kvm.absent")
    assert "the payload never ended" in finding.message
    assert "emulator" in finding.meaning


def test_proven_kvm_is_no_finding_and_nested_kvm_is_one() -> None:
    """Only what was run under KVM counts as KVM; below another hypervisor it is said."""
    proven = Capability("vm", True, accelerator=Accelerator("kvm", "ran"))
    nested = Capability("vm", True, accelerator=Accelerator("kvm", "ran", nested=True))
    assert list(live.accelerator([proven])) == []
    assert codes(list(live.accelerator([nested]))) == {"kvm.nested"}


def test_an_arm_that_does_not_work_is_a_problem_and_a_missing_peer_is_not() -> None:
    """The remedy of the backend's own probe is passed on."""
    found = list(live.accelerator([
        Capability("container", False, "no erofs", "modprobe erofs"),
        Capability("docker", False, "not installed"),
    ]))  # fmt: skip
    assert [(finding.level, finding.remedy) for finding in found] == [
        ("problem", "modprobe erofs"),
        ("info", ""),
    ]


def test_clocks_that_jump_slew_or_stood_still() -> None:
    """Each is told from two readings; clocks that agree are no finding."""
    start, second = Clocks(10**18, 10**12, 10**12, 10**12), 10**9

    def later(wall: int = second, raw: int = second, boot: int = second) -> Clocks:
        return Clocks(start.wall + wall, start.monotonic + second, start.raw + raw,
                      start.boot + boot)  # fmt: skip

    assert list(live.clock_steps(start, later())) == []
    assert codes(list(live.clock_steps(start, later(wall=3 * second)))) == {"clock.step"}
    assert codes(list(live.clock_steps(start, later(raw=second - 5_000_000)))) == {"clock.slew"}
    slept = list(live.clock_steps(start, later(boot=61 * second)))
    assert codes(slept) == {"clock.suspended"} and "60 s" in slept[0].message


def test_stolen_time_and_other_work_are_told_apart() -> None:
    """What the machine below takes is another finding than what others do here."""
    busy = {"other_cpus": 2.0 * (os.cpu_count() or 1), "steal_cpus": 0.0, "psi_cpu": 0.0}
    assert codes(list(live.load(busy))) == {"load.other"}
    stolen = {"other_cpus": 0.0, "steal_cpus": 0.06, "psi_cpu": 0.0}
    assert "load.steal" in codes(list(live.load(stolen)))
    assert codes(list(live.load({"other_cpus": 0.0}))) == {"load.psi"}
    assert disturbances.unrest(busy)


def test_what_the_version_of_control_groups_means() -> None:
    """v1, v1 with cgroup2 beside it, and nothing to say about v2."""
    controllers = {"memory": Path("/x/memory"), "cpuacct": Path("/x/cpuacct")}
    assert list(live.versions(Layout(2, controllers))) == []
    (hybrid,) = live.versions(Layout(1, controllers, Path("/x/unified")))
    assert hybrid.code == "cgroup.v1" and "hybrid" in hybrid.message and hybrid.remedy
    alone = list(live.versions(Layout(1, controllers)))
    assert codes(alone) == {"cgroup.v1", "cgroup.no-unified"} and "hybrid" not in alone[0].message


@pytest.mark.parametrize(
    ("policy", "level"), [("DROP", "problem"), ("REJECT", "warning"), ("", "warning")]
)
def test_a_firewall_between_the_ports_of_a_bridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, level: str
) -> None:
    """br_netfilter with a policy that drops, or that no tool tells; off or accepting is none."""
    switch, program = tmp_path / "bridge-nf-call-iptables", tmp_path / "iptables"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def says(text: str) -> None:
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    says(f"echo -P FORWARD {policy}" if policy else "exit 1")
    for name in ("iptables-nft", "iptables-legacy"):
        (tmp_path / name).symlink_to(program)
    switch.write_text("1\n")
    found = network.netfilter_finding(switch)
    assert found and (found.code, found.level) == ("net.bridge-netfilter", level)
    assert "sysctl" in found.remedy and (policy or "not readable") in found.message
    says("echo -P FORWARD ACCEPT")
    assert network.netfilter_finding(switch) is None
    says("echo -P FORWARD DROP")
    switch.write_text("0\n")
    assert network.netfilter_finding(switch) is None
    assert network.netfilter_finding(tmp_path / "no such file") is None


DISK_CODES = """
import sys
from bench.checks import live
print(*sorted(finding.code for finding in live.disk()))
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "mount -t tmpfs -o size=64m,nr_inodes=500 none {cache}",
            "disk.cache-inodes disk.file-system disk.space",
        ),
        ("mount -t tmpfs -o ro none {cache}", "disk.cache"),
        ("mount -t tmpfs -o size=4g none {cache}; mount -t tmpfs -o size=1m none {run}",
         "disk.file-system disk.runtime"),
    ],
    ids=["small", "read-only", "runtime"],
)  # fmt: skip
def test_disks_that_are_full_small_or_read_only(tmp_path: Path, script: str, found: str) -> None:
    """Little room, few inodes, no direct I/O, nothing writable: seen on real file systems."""
    runtime_root().mkdir(exist_ok=True)
    before = faults.hidden(script.format(cache=tmp_path, run=runtime_root()))
    done = subprocess.run(
        [*before, sys.executable, "-c", DISK_CODES],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == found.split()


def test_a_disk_that_turns(tmp_path: Path) -> None:
    """Said on real hardware; a guest's disks say that they turn whatever they are."""
    facts: Facts = {"file_system": "ext4", "free_bytes": 1 << 40, "rotational": True}
    tree = host(tmp_path, {})
    assert "disk.rotational" in codes(list(live.disk(facts, tree)))
    assert "disk.rotational" not in codes(list(live.disk({**facts, "rotational": False}, tree)))


def test_every_finding_is_printed_with_meaning_and_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of what is only worth knowing."""
    for level in doctor.LEVELS:
        print_finding(Finding("x.y", level, f"seen {level}", "it means", "do that"))
    said = capsys.readouterr().out
    assert said.count("it means") == said.count("→ do that") == len(doctor.LEVELS) == 3


# -- programs and distributions --------------------------------------------------------------


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    ("release", "family"),
    [
        ("ID=debian", "debian"),
        ("ID=ubuntu\nID_LIKE=debian", "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "debian"),
        ("ID=fedora", "fedora"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "fedora"),
        ("ID=arch", "arch"),
        ("ID=manjaro\nID_LIKE=arch", "arch"),
    ],
)
def test_a_missing_program_names_its_package_on_each_distribution(
    release: str, family: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is that distribution's command, with the name packages.txt has for it."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    tree = Tree(host(tmp_path, {"/etc/os-release": release}).root, machine)
    asked = [str(CHECKOUT / "hvct"), "packages", family, machine]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    command = distributions.DISTRIBUTIONS[family].install
    found = [finding for finding in programs.programs(tree, {}) if "mount" not in finding.code]
    assert len(found) >= len(programs.programs_of(machine)) - 3  # some lie in /usr/sbin here
    for finding in found:
        if "AUR" in finding.remedy:
            assert f"aur/{finding.remedy.split()[1]}" in listed
        else:
            assert finding.remedy.startswith(f"{command} ")
            assert finding.remedy.removeprefix(f"{command} ") in listed


def test_an_unknown_distribution_gets_debians_names(tmp_path: Path) -> None:
    """And is told that they are Debian's."""
    tree = host(tmp_path, {"/etc/os-release": "ID=slackware"})
    said = distributions.how_to_install(tree, {"debian": "erofs-utils"})
    assert "Debian's package erofs-utils" in said


def test_an_old_program_is_a_warning() -> None:
    """Older than what hvct is tested with; an unknown version is not judged."""
    old = codes(list(programs.programs(Tree(), {"qemu": "6.2.0", "umoci": "unknown"})))
    assert any(code.startswith("program.qemu-system-") for code in old)
    assert not any(code.startswith("program.umoci.old") for code in old)
    assert not programs.older("10.0.2", "7.2") and not programs.older("0.4.7+ds", "0.4.7")
    assert programs.older("0.4.6", "0.4.7")


def test_kernel_features_are_found_however_they_are_built() -> None:
    """Built in, loaded or loadable: all count; an invented one does not."""
    assert has(Tree(), "proc")
    assert not has(Tree(), "nosuchthing")


def test_leftovers_of_dead_runs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that could not be undone is shown with the command that undoes it."""
    record = doctor.journal.Journal("r0001", 1, -7, "/x", since="yesterday")
    monkeypatch.setattr(doctor.journal, "dead", lambda: [record])
    monkeypatch.setattr(doctor.cleanup, "clean", lambda tag, dry_run: ["one thing"])
    (finding,) = doctor.leftovers()
    assert finding.remedy == "hvct clean r0001"
    assert "yesterday" in finding.message

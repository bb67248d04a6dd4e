"""Is /dev/kvm what it says? Decided by running something under it, in two stages.

First a payload of 360 bytes under plain QEMU (well under a second, whatever comes of it),
then the real kernel to `init` against a deadline. The answer is kept per boot of the
host, QEMU and kernel. That the device exists proves nothing: there are hosts whose KVM
is an emulator at 2 MIPS that knows no cmpxchg16b.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.cache import cache_dir, lock, publish, workspace
from bench.command import run
from bench.errors import HvctError
from bench.model import Accelerator, ProbeStage
from hv.architecture import here
from hv.emulator import Emulator

KVM = Path("/dev/kvm")
LIMIT_S = 0.7  # of one run of the payload
BUDGET_S = 0.9  # of both runs together: whoever waits for the answer waits under a second
LEAST_MIPS = 50.0  # the slowest real virtualisation runs thousands
LOOP_INSTRUCTIONS = 400_000  # between 0 and 4 in hv/probe_payload.S
_SOURCE = Path(__file__).with_name("probe_payload.S")
_ASSEMBLER_HINT = "install the package binutils"

# CPU features that some hosts offer and cannot give; without them is tried second.
DOUBTFUL_FEATURES = ("arch-capabilities",)

_STOPPED_AT = {
    "": "a guest did not start",
    "A": "a guest did not enter long mode",
    "4": "stopped on cmpxchg16b",
    "D": "stopped on xsave",
    "d": "stopped on xsave",
}


@dataclass(frozen=True)
class PayloadResult:
    """What the payload said and how it ended.

    Attributes:
        said: the letters that arrived.
        mips: million instructions per second in its loop, 0 when it did not finish it.
        failure: QEMU's own complaint, if any.
    """

    said: str
    mips: float
    failure: str
    seconds: float

    @property
    def passed(self) -> bool:
        """True when it did everything, fast enough."""
        return self.said[-1:] in ("Z", "z") and self.mips >= LEAST_MIPS

    def describe(self) -> str:
        """What was wrong, in words that follow “but …”."""
        parts = []
        if self.mips:
            parts.append(f"a guest ran at {self.mips:.1f} MIPS")
        if self.said[-1:] not in ("Z", "z"):
            stopped = _STOPPED_AT.get(self.said[-1:], "a guest stopped in a plain loop")
            if self.failure and not self.said:
                stopped += f" ({self.failure})"
            parts.append(stopped)
        return " and ".join(parts)


@dataclass(frozen=True)
class Verdict:
    """The accelerator, and the CPU features a guest must do without under it."""

    accelerator: Accelerator
    disabled_features: tuple[str, ...] = ()


def payload(light: bool = False) -> Path:
    """The payload, assembled on first use; `light` leaves out cmpxchg16b and xsave."""
    source = _SOURCE.read_bytes()
    key = sha256(source + (b"light" if light else b"")).hexdigest()[:16]
    final = cache_dir("programs") / f"probe-{key}"
    with lock("probe-payload"):
        if final.exists():
            return final
        with workspace("probe") as folder:
            switch = ["--defsym", "LIGHT=1"] if light else []
            object_file, flat = folder / "payload.o", folder / "payload"
            run(["as", "--64", *switch, "-o", object_file, _SOURCE], hint=_ASSEMBLER_HINT)
            link = ["ld", "-m", "elf_x86_64", "-Ttext=0x100000", "--oformat", "binary"]
            run([*link, "-e", "_start", "-o", flat, object_file], hint=_ASSEMBLER_HINT)
            return publish(flat, final)


def run_payload(emulator: Emulator, kind: str, cpu: str, limit_s: float = LIMIT_S) -> PayloadResult:
    """Run the payload under plain QEMU, for at most `limit_s`."""
    argv = [str(emulator.qemu), "-nodefaults", "-no-user-config", "-display", "none"]
    # microvm: q35 spends seconds in its firmware on a KVM that is none.
    argv += ["-machine", f"microvm,accel={kind}", "-cpu", cpu, "-m", "16"]
    argv += ["-kernel", str(payload()), "-debugcon", "stdio", "-no-reboot"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    began = time.monotonic()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        said, stamps, complaint = _listen(process, argv[0], began + limit_s)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    first, last = stamps.get("0"), stamps.get("4")
    mips = 0.0
    if first is not None and last is not None:
        # Bytes that arrived together: faster than can be measured so.
        mips = LOOP_INSTRUCTIONS / max(last - first, 1e-5) / 1e6
    return PayloadResult(said, mips, complaint, time.monotonic() - began)


def _listen(
    process: subprocess.Popen[bytes], name: str, deadline: float
) -> tuple[str, dict[str, float], str]:
    assert process.stdout is not None and process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    said, complaint = "", b""
    stamps: dict[str, float] = {}
    open_streams = {out, err}
    while open_streams and (left := deadline - time.monotonic()) > 0:
        for stream in select.select(list(open_streams), [], [], left)[0]:
            data = os.read(stream, 65536)
            now = time.monotonic()
            if not data:
                open_streams.discard(stream)
            elif stream == err:
                complaint += data
            else:
                for letter in data.decode("ascii", "replace"):
                    said += letter
                    stamps.setdefault(letter, now)
        if b"internal error" in complaint:
            break  # it stands still now
    lines = complaint.decode("utf-8", "replace").strip().splitlines()
    return said, stamps, lines[0].removeprefix(f"{name}: ") if lines else ""


def payload_verdict(emulator: Emulator) -> Verdict:
    """Stage one: the device, then the payload with the host's CPU, then with less of it."""
    if not KVM.exists():
        return _tcg("there is no /dev/kvm")
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return _tcg(f"/dev/kvm cannot be opened: {error.strerror}")
    if not here().payload:
        return _kvm("/dev/kvm can be opened, and the guest kernel booted under it")
    first, second = try_payload(emulator, "kvm", "host")
    if first.passed:
        return _kvm(f"a guest ran at {first.mips:.0f} MIPS")
    if second.passed:
        reason = f"a guest ran at {second.mips:.0f} MIPS without {' '.join(DOUBTFUL_FEATURES)}"
        return _kvm(reason, DOUBTFUL_FEATURES)
    worst = max(first, second, key=lambda result: len(result.said))
    return _tcg(f"/dev/kvm is there, but {worst.describe()}")


def try_payload(
    emulator: Emulator, kind: str, cpu: str, budget_s: float = BUDGET_S
) -> tuple[PayloadResult, PayloadResult]:
    """Run the payload, and where that may help once more without what is doubtful.

    Both within `budget_s`. Where there is no second run its result is that of the first.
    """
    payload()  # assembled outside the budget, once
    deadline = time.monotonic() + budget_s
    first = run_payload(emulator, kind, cpu, min(LIMIT_S, budget_s))
    left_s = deadline - time.monotonic()
    # It did not start, or was too slow: once more.
    doubtful = not first.passed and (not first.said or first.said[-1] in "Zz")
    if not doubtful or left_s <= 0:
        return first, first
    without = ",".join(f"{name}=off" for name in DOUBTFUL_FEATURES)
    return first, run_payload(emulator, kind, f"{cpu},{without}", min(LIMIT_S, left_s))


def decide(
    emulator: Emulator,
    kernel_digest: str,
    boot: Callable[[Verdict], str],
    first: Callable[[Emulator], Verdict] = payload_verdict,
) -> Verdict:
    """Both stages, or what they found before on this boot with this QEMU and kernel.

    Args:
        boot: the second stage: boots the real kernel to `init` under the verdict of the
            first; says what went wrong, or "".
    """
    store = cache_dir("vm") / "accelerator.json"
    there = str(os.access(KVM, os.R_OK | os.W_OK))  # it may come with a module
    parts = (emulator.identity, kernel_digest, there, _SOURCE.read_text())
    key = sha256("\0".join(parts).encode()).hexdigest()[:32]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with lock("accelerator"):
        kept = _load(store)
        found: dict[str, Any] = kept["verdicts"] if kept.get("boot_id") == boot_id else {}
        if key in found:
            return _verdict(found[key])
        verdict = first(emulator)
        if verdict.accelerator.kind == "kvm":
            failure = boot(verdict)
            if failure:
                verdict = _tcg(f"/dev/kvm runs a small payload, but {failure}")
        found[key] = asdict(verdict)
        with workspace("accelerator") as folder:
            made = folder / "verdicts"
            made.write_text(json.dumps({"boot_id": boot_id, "verdicts": found}))
            os.replace(made, store)
    return verdict


def stages(
    emulator: Emulator,
    boot: Callable[[Verdict], str],
    first: Callable[[Emulator], Verdict] = payload_verdict,
) -> list[ProbeStage]:
    """Both stages, run anew whatever was found before: what each showed, for whom asks."""
    began = time.monotonic()
    verdict = first(emulator)
    passed = verdict.accelerator.kind == "kvm"
    found = [ProbeStage("payload", passed, verdict.accelerator.reason, time.monotonic() - began)]
    if not passed:
        return [*found, ProbeStage("guest kernel", None, "not tried: the payload did not run", 0.0)]
    began = time.monotonic()
    failure = boot(verdict)
    said = failure or "a guest under libvirt's type='kvm' reached its init"
    return [*found, ProbeStage("guest kernel", not failure, said, time.monotonic() - began)]


def _verdict(item: dict[str, Any]) -> Verdict:
    found = item["accelerator"]
    accelerator = Accelerator(str(found["kind"]), str(found["reason"]), bool(found["nested"]))
    return Verdict(accelerator, tuple(item["disabled_features"]))


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("verdicts"), dict) else {}


def _tcg(reason: str) -> Verdict:
    return Verdict(Accelerator("tcg", reason))


def _kvm(reason: str, disabled_features: tuple[str, ...] = ()) -> Verdict:
    return Verdict(Accelerator("kvm", reason, nested=_is_guest()), disabled_features)


def _is_guest() -> bool:
    """True where this host is a virtual machine itself (the CPU says so)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        raise HvctError(f"read /proc/cpuinfo: {error.strerror}") from error
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "hypervisor" in flags.split()

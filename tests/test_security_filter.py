"""Our system-call filter is no weaker than the one that a Docker engine really loads."""

from __future__ import annotations

import errno
import json
import platform
import shutil
import socket
import struct
from itertools import product
from typing import Any

import pytest
from engine import Engine, layer_of, save_archive

from bench.agent.confinement import CAPABILITIES, MASKED, READ_ONLY
from bench.agent.seccomp import COMMON, NEWEST, seccomp_program
from bench.image.busybox import find_busybox

pytestmark = pytest.mark.root
pyseccomp = pytest.importorskip("pyseccomp")

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, ERROR = 0x7FFF0000, 0x00050000
BEYOND = 520  # no call has such a number yet
VALUES = (0, 1, 8, 17, 40, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF, *(1 << bit for bit in range(32)))


def verdict(program: bytes, architecture: int, number: int, first: int) -> int:
    """What a BPF program says about a call: the machine of linux/filter.h, as far as it is used."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
    code = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, jump_true, jump_false, k = code[at]
        at += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x54:  # and
            accumulator &= k
        elif operation == 0x05:  # jump
            at += k
        elif operation & 7 == 5:
            taken = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[operation]
            at += jump_true if taken else jump_false
        else:
            assert operation == 0x06, hex(operation)
            return k


@pytest.fixture(scope="module")
def theirs(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Docker tells its runtime about a container, as the runtime gets it."""
    space = tmp_path_factory.mktemp("filter")
    (space / "tree/bin").mkdir(parents=True)
    shutil.copy(find_busybox(space), space / "tree/bin/sleep")
    layer = layer_of(space / "tree")
    config = {"Entrypoint": ["/bin/sleep"], "Cmd": ["1000"]}
    docker.load(save_archive(space / "image.tar", "filter:1", [layer], config))
    name = docker.ask("run", "-d", "--network=none", "filter:1")
    (bundle,) = docker.root.glob(f"exec/containerd/daemon/*/moby/{name}/config.json")
    found: dict[str, Any] = json.loads(bundle.read_text())
    docker.ask("rm", "-f", name)
    return found


def matches(rule: dict[str, Any], first: int) -> bool:
    """Whether a rule of a profile holds for a first argument; the others are 0."""
    for argument in rule.get("args") or []:
        value = first if argument["index"] == 0 else 0
        holds = {
            "SCMP_CMP_EQ": value == argument["value"],
            "SCMP_CMP_NE": value != argument["value"],
            "SCMP_CMP_MASKED_EQ": value & argument["value"] == argument.get("valueTwo", 0),
        }[argument["op"]]
        if not holds:
            return False
    return True


def test_no_call_is_let_through_that_docker_refuses(theirs: dict[str, Any]) -> None:
    """Every number, known or not, with first arguments that matter to either."""
    profile = theirs["linux"]["seccomp"]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = [rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    names = {
        pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name): name
        for rule in allowed
        for name in rule["names"]
    }
    ours, refused, passed = seccomp_program(), 0, set()
    for number, first in product(range(BEYOND), VALUES):
        fine = any(names.get(number) in rule["names"] and matches(rule, first) for rule in allowed)
        mine = verdict(ours, AUDIT_ARCH[platform.machine()], number, first) == ALLOW
        refused += not mine
        if mine and not fine:
            passed.add(number)
    # Protection keys of a program's own memory, which later Dockers let through.
    keys = ("pkey_alloc", "pkey_free", "pkey_mprotect")
    native = pyseccomp.Arch.NATIVE
    assert passed <= {pyseccomp.resolve_syscall(native, name) for name in keys}
    assert refused > 50 * len(VALUES)


def test_a_program_works_that_works_with_docker(theirs: dict[str, Any]) -> None:
    """What we refuse and Docker, of this version or a later one, does not: each has its reason."""
    beyond = {
        "clock_adjtime",  # reads the host's clock discipline
        "io_uring_enter",  # a large kernel interface past the filter; later Dockers refuse it too
        "io_uring_register",
        "io_uring_setup",
        "name_to_handle_at",  # the first half of open_by_handle_at
        "process_vm_readv",  # ptrace does the same with more checks
        "process_vm_writev",
    }
    ours = seccomp_program()
    found = set()
    for rule in theirs["linux"]["seccomp"]["syscalls"]:
        for name in rule["names"] if rule["action"] == "SCMP_ACT_ALLOW" else ():
            number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            first = (rule.get("args") or [{"value": 0}])[0]["value"] if name != "clone" else 0
            if 0 <= number <= NEWEST:
                code = verdict(ours, AUDIT_ARCH[platform.machine()], number, first)
                found |= {name} if code != ALLOW else set()
    assert found <= beyond


def test_what_nobody_judged_is_not_there() -> None:
    """Later calls and the x32 ABI are ENOSYS, so that a libc falls back; other ABIs are refused."""
    ours, native = seccomp_program(), AUDIT_ARCH[platform.machine()]
    for number in (COMMON - 1, NEWEST + 1, BEYOND, 0x40000000, 0x40000000 + 39, 0xFFFFFFFF):
        assert verdict(ours, native, number, 0) == ERROR | errno.ENOSYS
    assert verdict(ours, native, NEWEST, 0) == ALLOW
    socket_call = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "socket")
    assert verdict(ours, native, socket_call, socket.AF_VSOCK) == ERROR | errno.EAFNOSUPPORT
    assert verdict(ours, native, socket_call, socket.AF_INET) == ALLOW
    if platform.machine() == "x86_64":
        assert verdict(ours, 0x40000003, 20, 0) == ERROR | errno.ENOSYS  # getpid of i386


def test_paths_and_capabilities_are_at_least_dockers(theirs: dict[str, Any]) -> None:
    """Masked and read-only paths contain Docker's, capabilities are among Docker's."""
    assert set(theirs["linux"]["maskedPaths"]) <= set(MASKED)
    assert set(theirs["linux"]["readonlyPaths"]) <= set(READ_ONLY)
    for name in ("bounding", "permitted", "effective"):
        given = theirs["process"]["capabilities"][name]
        assert {f"CAP_{one}" for one in CAPABILITIES} == {*given} - {"CAP_MKNOD"}

"""The floor of a container's start: a C program made of the very plan that ct executes.

Straight-line C, one system call after the other with its constants, in the order of the plan;
no protocol, no decision. What it takes is what the kernel takes. Two forms: the plan's calls
alone, then the workload; and with a first process in between that forks the workload, making the
calls of our agent in its order (`floor_first.c`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.agent.build import CLONE3, build_static
from bench.cgroup import Cgroup, CgroupLimits
from bench.cgroupfs import layout
from bench.context import RunContext
from bench.model import Image, InstanceSpec
from ct import rootfs
from ct.backend import ContainerBackend
from ct.rootfs import Lower
from ct.steps import Step

NAME = "NAME"  # stands for the group's, which is another one at each launch
PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "clone3.h"
#define TRY(call) if ((call) < 0 && errno != EEXIST) { perror(#call); _exit(9); }
static char stack[65536] __attribute__((aligned(16)));
static char name[64];
static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    TRY(write(fd, text, strlen(text)));
    close(fd);
}
static void set(const char *format, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, format, name);
    int fd = open(path, O_WRONLY);
    TRY(write(fd, text, strlen(text)));
    close(fd);
}
static void make(const char *format, const char *name) {
    char path[512];
    snprintf(path, sizeof path, format, name);
    TRY(mkdir(path, 0755));
}
static void gone(const char *format, const char *name) {
    char path[512];
    snprintf(path, sizeof path, format, name);
    for (int tries = 0; rmdir(path) && tries < 1000; tries++) usleep(1000);
}
static int opened(const char *format, int flags, const char *name) {
    char path[512];
    snprintf(path, sizeof path, format, name);
    int fd = open(path, flags | O_CLOEXEC);
    TRY(fd);
    return fd;
}
static void up(void) {
    struct ifreq lo = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TRY(ioctl(fd, SIOCGIFFLAGS, &lo));
    lo.ifr_flags |= IFF_UP | IFF_RUNNING;
    TRY(ioctl(fd, SIOCSIFFLAGS, &lo));
    close(fd);
}
static void keep(uint64_t mask) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    TRY(syscall(SYS_capget, &header, data));
    for (unsigned long cap = 0; cap < 64; cap++)
        if (!(mask >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)) break;
    for (int i = 0; i < 2; i++) {
        uint32_t half = (uint32_t)(mask >> (32 * i)) & data[i].permitted;
        data[i] = (struct __user_cap_data_struct){.effective = half, .permitted = half};
    }
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(syscall(SYS_capset, &header, data));
}
static unsigned char filter[] __attribute__((aligned(8))) = {@FILTER@};
static struct timespec begun, started;
static int first;
static int cradle;
static void child(void) {
    int old;
    char *const argv[] = {"stamp", NULL};
    char *const none[] = {NULL};
    struct sock_fprog program = {sizeof filter / 8, (struct sock_filter *)filter};
    (void)program;
@STEPS@
    if (first >= 0) {
        char *const words[] = {"first", @STAMP@, NULL};
        syscall(SYS_execveat, first, "", words, none, AT_EMPTY_PATH);
        _exit(9);
    }
    clock_gettime(CLOCK_MONOTONIC, &started);
    execv(@STAMP@, argv);
    _exit(9);
}
static long long ns(struct timespec at) { return at.tv_sec * 1000000000LL + at.tv_nsec; }
int main(int argc, char **argv) {
    first = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    setvbuf(stdout, NULL, _IONBF, 0);
    TRY(unshare(CLONE_NEWNS));
    TRY(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
    TRY(mount(@IMAGE@, "image", "erofs", MS_RDONLY | MS_NODEV, @OPTIONS@));
    while (scanf("%63s", name) == 1) {
        int status = 0;
        clock_gettime(CLOCK_MONOTONIC, &begun);
@BEFORE@
        struct clone_arguments how = {
            .flags = @FLAGS@ | CLONE_VM | CLONE_VFORK | (cradle ? INTO_CGROUP : 0),
            .exit_signal = SIGCHLD, .stack = (uintptr_t)stack, .stack_size = sizeof stack,
            .cgroup = (uint64_t)cradle,
        };
        int pid = (int)clone3_call(&how, child);
        TRY(pid);
        waitpid(pid, &status, 0);
        if (status) return 1;
        if (first < 0) printf("%lld\n", ns(started));
        printf("%lld\n", ns(begun));
@AFTER@
    }
    return 0;
}
"""


def quoted(text: str) -> str:
    """A C string."""
    made = []
    for byte in text.encode():
        plain = 32 <= byte < 127 and chr(byte) not in '"\\?'
        made.append(chr(byte) if plain else f"\\{byte:03o}")
    return '"' + "".join(made) + '"'


def statement(step: Step) -> str:
    """One step as C."""
    words = [quoted(word) for word in step.arguments]
    raw = step.arguments
    match step.do:
        case "unshare":
            return f"TRY(unshare({raw[0]}));"
        case "mount":
            return f"TRY(mount({', '.join(words[:3])}, {raw[3]}, {words[4]}));"
        case "mkdir":
            return f"TRY(mkdir({words[0]}, {raw[1]}));"
        case "mknod":
            return f"TRY(mknod({words[0]}, {raw[1]}, makedev({raw[2]}, {raw[3]})));"
        case "symlink":
            return f"TRY(symlink({words[0]}, {words[1]}));"
        case "write":
            return f"put({words[0]}, {words[1]});"
        case "pivot":
            pivot = f'TRY(chdir({words[0]})); TRY(syscall(SYS_pivot_root, ".", "."));'
            return f'old = open("/", O_PATH | O_CLOEXEC); {pivot} TRY(fchdir(old)); close(old);'
        case "detach":
            return 'TRY(umount2(".", MNT_DETACH)); TRY(chdir("/"));'
        case "hostname":
            return f"TRY(sethostname({words[0]}, {len(raw[0])}));"
        case "interface":
            return "up();"
        case "capabilities":
            return f"keep({raw[0]}ull);"
        case "no_new_privs":
            return "TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));"
        case "seccomp":
            return "TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));"
    raise AssertionError(f"the floor does not know the step {step.do}")


def source(backend: ContainerBackend, spec: InstanceSpec, program: str, *, direct: bool) -> str:
    """The program's text."""
    plan = backend.plan(spec, Lower("image", "file", direct))
    lines = [statement(step) for step in plan.steps]
    before, after = [], []
    if spec.accounting:
        limits = CgroupLimits(
            spec.limits.memory_bytes, spec.limits.swap_bytes, spec.cpu_set, None, spec.limits.pids
        )
        group = Cgroup(backend.context.tag, "%s", limits, layout())
        for directory in group.directories:
            before.append(f"make({quoted(str(directory))}, name);")
            after.append(f"gone({quoted(str(directory))}, name);")
        for path, value in group._settings():
            before.append(f"set({quoted(path)}, name, {quoted(value)});")
        joins = [f'set({quoted(path)}, name, "0");' for path in group.join_files(born=True)]
        lines = [*joins, *lines]
        if group.cradle:
            path = quoted(group.cradle)
            before.append(f"cradle = opened({path}, O_PATH | O_DIRECTORY, name);")
            after.append("close(cradle);")
    code = next((step.arguments[0] for step in plan.steps if step.do == "seccomp"), "00")
    parts = {
        "FILTER": ", ".join(str(byte) for byte in bytes.fromhex(code)),
        "STEPS": "\n".join(lines),
        "BEFORE": "\n".join(before),
        "AFTER": "\n".join(after),
        "FLAGS": str(plan.flags),
        "STAMP": quoted(program),
        "IMAGE": quoted(str(spec.image.path)),
        "OPTIONS": quoted("directio" if direct else ""),
    }
    text = PROGRAM
    for word, part in parts.items():
        text = text.replace(f"@{word}@", part)
    return text


class Floor:
    """The program, running; each `start` is one container."""

    def __init__(self, process: subprocess.Popen[str], first: bool) -> None:
        self._process, self._first = process, first

    def start(self, name: str) -> tuple[float, float]:
        """Seconds from its first call to the workload's exec, and to its first instruction."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        said = [int(self._process.stdout.readline()) for _ in range(3)]
        # The first process says before its fork's exec when that is; else the program does after.
        started, instruction = said[:2] if self._first else (said[1], said[0])
        return (started - said[2]) / 1e9, (instruction - said[2]) / 1e9


@contextmanager
def floor(
    backend: ContainerBackend,
    context: RunContext,
    image: Image,
    spec: InstanceSpec,
    program: str,
    *,
    first: bool = False,
) -> Iterator[Floor]:
    """Compile and start it, in a folder as the launcher has one."""
    backend.prepare(spec)
    direct = backend._lower(image).path_taken == "file"
    folder = context.runtime_dir / f"floor-{int(spec.accounting)}{int(first)}"
    for name in ("image", rootfs.SCRATCH):
        (folder / name).mkdir(parents=True)
    (folder / "floor.c").write_text(source(backend, spec, program, direct=direct))
    flags = ("-Wno-unused-function", "-Wno-unused-variable", "-Wno-unused-parameter")
    flags += (f"-I{CLONE3.parent}",)
    argv = [build_static("floor", [folder / "floor.c"], [CLONE3], flags)]
    if first:
        argv.append(build_static("floor-first", [Path(__file__).parent / "floor_first.c"]))
    process = subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Floor(process, first)
    finally:
        process.communicate()
        for name in ("image", rootfs.SCRATCH, "floor.c"):
            path = folder / name
            path.unlink() if path.is_file() else path.rmdir()
        folder.rmdir()
        assert process.returncode == 0

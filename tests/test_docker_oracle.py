"""Docker is the oracle: the same image and command give the same answers by hvct.

What differs on purpose is in DIFFERS, with what is there instead; docs/docker.md says why.
Over 400 lines: container and virtual machine are held against one set of cases.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from engine import Engine
from oracle import IMAGES, Answer, Case, soon

from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.image import store
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, OutputMode, Security
from ct.backend import ContainerBackend
from hv.backend import VmBackend

pytestmark = pytest.mark.root

DIFFERS: dict[str, Callable[[str], str]] = {
    "/etc/hosts": lambda _: "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\thvct",
    "/etc/resolv.conf": lambda _: "",
    "capabilities": lambda text: text.replace("a80425fb", "a00425fb"),  # without MKNOD
    "no_new_privs": lambda _: "NoNewPrivs:\t1",
    "limits": lambda text: re.sub(r"(?<=Max open files )\d+", "1024", text),
    "kernel file systems": lambda text: text.replace(
        "tmpfs /dev tmpfs rw,nosuid,size=65536k,mode=755",
        "tmpfs /dev tmpfs rw,nosuid,noexec,relatime,size=64k,mode=755",
    ),
    "process 1": lambda _: "memfd:hvct-agen",
    "devices": lambda text: re.sub(r"(?m)^console .*\n", "", text),  # Docker's with a terminal
}
"""Facets of SHOW that differ from Docker's, and what follows from Docker's for ours."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


USUAL_CACHE = os.environ.get("XDG_CACHE_HOME")


@pytest.fixture(scope="module")
def images(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    """Every image, in Docker and in a cache of the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = oracle.make_images(tmp_path_factory.mktemp("images"), docker)
        yield made


@pytest.fixture(scope="module")
def container(context: RunContext) -> Iterator[ContainerBackend]:
    """The container arm."""
    with ContainerBackend(context) as arm:
        yield arm


Both = Callable[[Case], tuple[Answer, Answer]]


@pytest.fixture
def both(
    docker: Engine, container: ContainerBackend, context: RunContext, images: dict[str, Image]
) -> Both:
    """Run a case by Docker and by hvct."""

    def runner(case: Case) -> tuple[Answer, Answer]:
        image = images[case.image]
        return (
            oracle.by_docker(docker, image, case),
            oracle.by_hvct(container, context, image, case),
        )

    return runner


def expected(theirs: dict[str, str]) -> dict[str, str]:
    """What ours must be, given Docker's."""
    return {name: DIFFERS.get(name, lambda text: text)(text) for name, text in theirs.items()}


def differing(ours: dict[str, str], wanted: dict[str, str]) -> dict[str, tuple[str, str]]:
    """The facets that are not as they must be: ours, and what is wanted."""
    names = ours.keys() | wanted.keys()
    pairs = {name: (ours.get(name, "none"), wanted.get(name, "none")) for name in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


SHOWN = [
    *(Case(name) for name, config in IMAGES.items() if "show" in str(config)),
    Case("named", ("one", ""), ("-e", "EMPTY=now", "-e", "HOME=/x", "-e", "MORE=a  b\nc")),
    Case("named", (), ("-u", "0", "-w", "/tmp")),
    Case("plain", ("show",), ("-u", "app:0")),
    Case("plain", ("show",), ("-u", "77:wheel", "-w", "/made/up")),
    Case("named", (), ("--entrypoint", "/bin/show")),
    Case("plain", ("show",), ("-t",)),
    Case("plain", ("show",), ("-i",), stdin=b"not read"),
]


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: f"{case.image}{' '.join(case.options)}")
def test_a_program_sees_the_same(both: Both, case: Case) -> None:
    """Arguments, environment, user, groups, folder, limits, devices, rights: facet by facet."""
    theirs, ours = both(case)
    assert theirs.status == ours.status == 0, (theirs.stderr, ours.stderr)
    assert not differing(ours.facets(), expected(theirs.facets()))


def shell(script: str, *options: str, stdin: bytes = b"", init: bool = True) -> Case:
    """A shell script in the plain image."""
    return Case("plain", ("sh", "-c", script), options, stdin, init)


VOLUMES = """
stat -c '%n %U:%G %a %F' /data /data/seed /new/volume
cat /data/seed; touch /data/x && id -un
touch /new/volume/x
"""
ALL_BYTES = bytes(range(256))
ENDS = {
    "a status": shell("echo out; echo err >&2; exit 3"),
    "status 126": shell("exit 126"),
    "status 127": shell("exit 127"),
    "status 255": shell("exit 255"),
    "killed": shell("kill -9 $$"),
    "terminated": shell("kill -TERM $$"),
    "crashed": shell("kill -SEGV $$"),
    "much output": shell("head -c 5000000 /dev/zero | tr '\\0' x; echo end >&2"),
    "no input": shell("cat; echo $?"),
    "input": shell("cat", "-i", stdin=ALL_BYTES * 1000),
    "input that nobody reads": shell("exit 4", "-i", stdin=b"x" * 100000),
    "a terminal": shell("tty; test -t 1 && echo out; test -t 2 && echo err; echo $TERM", "-t"),
    "a child left behind": shell("sleep 1000 & echo started"),
    "orphans": shell("(sleep 0.05 &); sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status; :"),
    "a folder of the image": shell(
        "stat -c '%n %U:%G %a %F' /data /data/seed; touch /data/x; cat /data/seed", "-u", "app"
    ),
    "declared volumes": Case("volumes", ("sh", "-c", VOLUMES)),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_program_ends_the_same(both: Both, name: str) -> None:
    """Both streams byte for byte, and the exit status as a shell sees it."""
    theirs, ours = both(ENDS[name])
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)
    assert ours.stderr == theirs.stderr


STATUSES = {
    "/no/such": 127,
    "nosuch": 127,
    "/bin/not-executable": 126,
    "/etc": 126,
    "/bin/no-interpreter": 127,
    "/bin/no-program": 126,
}
AFTER_THE_START = {"/bin/no-interpreter": 1, "/bin/no-program": 1}
"""Docker notices these too late for a status of its own; a shell has those above."""


@pytest.mark.parametrize("program", STATUSES)
def test_a_program_that_cannot_start_has_the_same_status(both: Both, program: str) -> None:
    """127 where there is none, 126 where it may not be executed; it is said on standard error."""
    theirs, ours = both(Case("plain", (program,), init=False))
    assert theirs.status == AFTER_THE_START.get(program, STATUSES[program])
    assert (ours.status, ours.stdout) == (STATUSES[program], theirs.stdout)
    assert ours.stderr and theirs.stderr


DOCKERFILE = r"""
FROM oracle/plain:1
ENV SPACED="a  b" PLAIN=c\ d
ENV OLD form of it
ARG NEVER=set
WORKDIR /srv
WORKDIR below/it
USER app:extra
STOPSIGNAL SIGINT
VOLUME /data
ENTRYPOINT echo entry $0; exec show "$PLAIN"
CMD ["left", "out"]
"""


def test_an_image_that_docker_built_and_saved(
    docker: Engine,
    container: ContainerBackend,
    context: RunContext,
    images: dict[str, Image],
    tmp_path: Path,
) -> None:
    """What a Dockerfile says arrives through `docker build` and `docker save` as by Docker."""
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    docker.ask("build", "-q", "--network=none", "-t", "oracle/built:1", str(tmp_path))
    docker.ask("save", "-o", str(tmp_path / "saved image.tar"), "oracle/built:1")
    image = store.import_archive(tmp_path / "saved image.tar")
    case = Case("plain")  # the image's own command
    theirs = oracle.by_docker(docker, image, case)
    ours = oracle.by_hvct(container, context, image, case)
    assert theirs.status == ours.status == 0, (theirs.stderr, ours.stderr)
    assert not differing(ours.facets(), expected(theirs.facets()))
    assert theirs.facets()["arguments"] == "[c d]"
    assert image.config.stop_signal == "SIGINT" and image.config.volumes == ("/data",)


def trap(signals: str, action: str) -> tuple[str, ...]:
    """A script that says what signal came."""
    script = f"trap '{action}' {signals}; echo ready; while :; do sleep 0.02; done"
    return ("sh", "-c", script)


@pytest.mark.parametrize(
    ("case", "grace_s"),
    [
        (Case("plain", trap("TERM INT", "echo bye; exit 5")), 10),
        (Case("volumes", trap("USR1", "echo one; exit 6")), 10),
        (Case("volumes", trap("TERM", "echo never; exit 7")), 10),
        (Case("plain", trap("TERM", "echo no")), 1),
        (Case("plain", ("sh", "-c", "echo ready; sleep 1000")), 10),
    ],
    ids=["trapped", "the image's signal", "another signal", "ignored", "not trapped"],
)
def test_a_stop_is_the_same(
    docker: Engine,
    container: ContainerBackend,
    context: RunContext,
    images: dict[str, Image],
    case: Case,
    grace_s: int,
) -> None:
    """The image's stop signal arrives, SIGKILL follows the grace, and the status tells which."""
    theirs = stopped_by_docker(docker, images[case.image], case, grace_s)
    wanted = oracle.specification(context, images[case.image], case)
    container.prepare(wanted)
    with container.launch(wanted) as instance:
        wait_for(instance, b"ready\n")
        instance.stop(grace_s)
    ours = oracle.answer_of(instance)
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)


def stopped_by_docker(docker: Engine, image: Image, case: Case, grace_s: int) -> Answer:
    """Start it detached, stop it when it is ready; output and status."""
    name = docker.ask("run", "-d", *oracle.docker_options(case), image.name, *case.command)
    try:
        deadline = soon()
        while b"ready\n" not in docker.docker("logs", name).stdout:
            assert time.monotonic_ns() < deadline
            time.sleep(0.02)
        docker.ask("stop", "-t", str(grace_s), name)
        status = int(docker.ask("wait", name))
        logs = docker.docker("logs", name)
        return Answer(logs.stdout, logs.stderr, status)
    finally:
        docker.ask("rm", "-f", "-v", name)


def wait_for(instance: oracle.Instance, text: bytes) -> None:
    """Wait until the instance has printed `text`."""
    deadline = soon()
    while text not in instance.stdout:
        assert time.monotonic_ns() < deadline, instance.stdout[-500:]
        instance.pump(0.1)


IN_A_GUEST = {
    "limits",  # cut to what the guest's kernel allows too
    "interfaces",  # a guest's kernel may have others
    "process 1",
}


@pytest.fixture(scope="module")
def machine(context: RunContext, images: dict[str, Image]) -> Iterator[VmBackend]:
    """The vm arm; what it keeps (kernel, initramfs, sizes) is in the usual cache."""
    with VmBackend(context) as arm:
        with usual_cache():
            found = arm.probe()
        if not found.usable:
            pytest.skip(f"{found.reason}; {found.remedy}")
        yield arm


@contextlib.contextmanager
def usual_cache() -> Iterator[None]:
    """The cache of the images is the module's own, and has no guest kernel."""
    with pytest.MonkeyPatch.context() as patch:
        if USUAL_CACHE is None:
            patch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            patch.setenv("XDG_CACHE_HOME", USUAL_CACHE)
        yield


def by_machine(arm: VmBackend, wanted: InstanceSpec, until: Callable[..., None]) -> Answer:
    """What a VM of this specification answers, once `until` has seen to its end."""
    try:
        with usual_cache():
            arm.prepare(wanted)
            with arm.launch(wanted) as instance:
                assert instance.wait(Event.STARTED, soon(120))
                until(instance)
    except LaunchFailed as error:
        return Answer(b"", error.message.encode(), error.exit_code)
    return oracle.answer_of(instance)


@pytest.mark.vm
@pytest.mark.parametrize(
    "case",
    [Case("named", ("wait",)), Case("plain", ("show", "wait"), ("-u", "77:wheel"))],
    ids=["an image's user", "another user and group"],
)
def test_a_vm_answers_the_same(
    docker: Engine, context: RunContext, images: dict[str, Image], machine: VmBackend, case: Case
) -> None:
    """Every facet, the stop signal, output and status: in a VM as by Docker."""
    theirs = stopped_by_docker(docker, images[case.image], case, 10)
    wanted = oracle.specification(
        context, images[case.image], case, security=Security.SAME, output=OutputMode.STREAM
    )
    assert wanted.stop_signal == signal.SIGTERM

    def until(instance: oracle.Instance) -> None:
        wait_for(instance, b"ready\n")
        instance.stop(10)

    ours = by_machine(machine, wanted, until)
    assert ours.status == theirs.status == 7
    same = expected(theirs.facets())
    found = ours.facets()
    for name in IN_A_GUEST:
        assert same.pop(name) and found.pop(name)
    assert not differing(found, same)


@pytest.mark.vm
def test_a_vm_is_stopped_by_the_images_signal(
    docker: Engine, context: RunContext, images: dict[str, Image], machine: VmBackend
) -> None:
    """STOPSIGNAL of an image with volumes reaches its program in a guest as by Docker."""
    case = Case("volumes", trap("USR1", "ls -a /data /new/volume; exit 6"))
    theirs = stopped_by_docker(docker, images["volumes"], case, 10)

    def until(instance: oracle.Instance) -> None:
        wait_for(instance, b"ready\n")
        instance.stop(10)

    wanted = oracle.specification(context, images["volumes"], case)
    assert wanted.stop_signal == signal.SIGUSR1
    ours = by_machine(machine, wanted, until)
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)
    assert theirs.status == 6 and b"seed" in theirs.stdout


@pytest.mark.vm
@pytest.mark.parametrize("name", ["killed", "crashed", "status 126", "declared volumes"])
def test_a_program_in_a_vm_ends_the_same(
    docker: Engine,
    context: RunContext,
    images: dict[str, Image],
    machine: VmBackend,
    name: str,
) -> None:
    """Both streams and the exit status, signals told as a shell tells them."""
    case = ENDS[name]
    theirs = oracle.by_docker(docker, images[case.image], case)

    def until(instance: oracle.Instance) -> None:
        assert instance.wait(Event.EXITED, soon(120))

    wanted = oracle.specification(context, images[case.image], case)
    assert by_machine(machine, wanted, until) == theirs


@pytest.mark.vm
@pytest.mark.parametrize("program", ["nosuch", "/bin/not-executable"])
def test_a_program_that_cannot_start_in_a_vm_has_the_same_status(
    docker: Engine,
    context: RunContext,
    images: dict[str, Image],
    machine: VmBackend,
    program: str,
) -> None:
    """127 and 126 in a guest too."""
    case = Case("plain", (program,), init=False)
    theirs = oracle.by_docker(docker, images["plain"], case)
    wanted = oracle.specification(context, images["plain"], case)
    ours = by_machine(machine, wanted, lambda instance: None)
    assert (ours.status, ours.stdout) == (theirs.status, theirs.stdout)
    assert ours.stderr and theirs.status == STATUSES[program]


def test_every_difference_is_explained() -> None:
    """docs/docker.md has a line for each facet that differs, and for none that does not."""
    text = (Path(__file__).parent.parent / "docs" / "docker.md").read_text()
    table = text.partition("## What differs")[2].partition("\n## ")[0]
    named = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[1:]  # less the heading
    assert sorted(named) == sorted([*DIFFERS, *ELSEWHERE])


ELSEWHERE = ("exit status", "first process", "network", "volumes")
"""Differences that are no facet."""

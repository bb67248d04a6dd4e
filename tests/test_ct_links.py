"""Links of a hostile image, where hvct mounts and writes: none leads out of the instance's root."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench.context import RunContext
from bench.errors import LaunchFailed
from bench.image import index
from bench.image.busybox import find_busybox
from bench.journal import open_run
from bench.model import Event, Image, ImageConfig, InstanceSpec, ReceiptLevel
from ct.backend import ContainerBackend, LauncherBackend
from ct.process import ProcessBackend
from hv.backend import VmBackend

pytestmark = pytest.mark.root
NUMBERS = count(1)
DOMAIN = Path("/proc/sys/kernel/domainname")
OURS = "the host's own\n"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    """A journaled run."""
    with open_run(tmp_path_factory.mktemp("run")) as run:
        yield run


@pytest.fixture(scope="module", params=[ContainerBackend, ProcessBackend], ids=lambda one: one.name)
def backend(request: pytest.FixtureRequest, context: RunContext) -> Iterator[LauncherBackend]:
    """The two arms whose set-up walks in the image's files."""
    with request.param(context) as arm:
        yield arm


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the host with a file that a link may aim at."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("hosts", "null"):
        (folder / name).write_text(OURS)
    return folder


def image_with(monkeypatch: pytest.MonkeyPatch, cache: Path, path: str, target: str) -> Image:
    """An image with a symbolic link at `path`; a named pipe where `target` is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with index.build_space() as space:
        tree = space / "tree"
        for folder in ("bin", "dev", "etc", "proc", "sys", "usr/etc"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(find_busybox(space), tree / "bin/busybox")
        place = tree / path
        if place.is_dir():
            place.rmdir()
        if target:
            place.symlink_to(target)
        else:
            os.mkfifo(place)
        return index.store_tree("linked", tree, ImageConfig(), source="a test", recipe="")


def printed(backend: LauncherBackend, context: RunContext, image: Image, *argv: str) -> str:
    """What a command of the image prints."""
    spec = InstanceSpec(
        context.instance(next(NUMBERS)),
        image=image,
        argv=("/bin/busybox", *argv),
        receipt=ReceiptLevel.CHEAP,
    )
    backend.prepare(spec)
    with backend.launch(spec) as instance:
        assert instance.wait(Event.EXITED, time.monotonic_ns() + 10 * 10**9)
    return instance.stdout.decode()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("etc", "/proc/self/cwd{victim}"),  # right after the pivot the host's root
        ("etc", "/..{victim}"),  # the host's root lies on top of the instance's
        ("etc/hosts", "/proc/self/cwd{victim}/hosts"),
        ("etc/hosts", "/proc/sys/kernel/domainname"),
        ("etc/hosts", ""),
        ("dev", "/proc/self/cwd{victim}"),
        ("dev", "usr/etc"),
        ("proc", "/"),
        ("proc", "usr"),
        ("sys", "/proc/self/cwd{victim}"),
    ],
)
def test_a_link_out_of_the_image_is_refused(
    backend: LauncherBackend,
    context: RunContext,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    target: str,
) -> None:
    """The launch fails in one line with a hint, at once, and the host's files are as they were."""
    aim = target.format(victim=victim)
    image = image_with(monkeypatch, victim.parent / "cache", path, aim)
    before = DOMAIN.read_text()
    try:
        with pytest.raises(LaunchFailed) as caught:
            printed(backend, context, image, "true")
        assert "\n" not in caught.value.message
        assert "link" in caught.value.hint or not target
        assert [(name.name, name.read_text()) for name in sorted(victim.iterdir())] == [
            ("hosts", OURS),
            ("null", OURS),
        ]
        assert DOMAIN.read_text() == before
    finally:
        if DOMAIN.read_text() != before:
            DOMAIN.write_text(before)


@pytest.mark.vm
def test_a_guest_refuses_it_too(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a container does not start from, a virtual machine does not either."""
    with monkeypatch.context() as patch:
        image = image_with(patch, tmp_path / "cache", "dev", "usr/etc")
    spec = InstanceSpec(context.instance(next(NUMBERS)), image=image, argv=("/bin/busybox", "true"))
    with VmBackend(context) as arm, pytest.raises(LaunchFailed) as caught:
        arm.prepare(spec)
        with arm.launch(spec) as instance:
            instance.wait(Event.EXITED, time.monotonic_ns() + 120 * 10**9)
    assert "/dev" in caught.value.message and "link" in caught.value.hint


@pytest.mark.parametrize(("path", "target"), [("etc", "usr/etc"), ("etc", "/usr/etc")])
def test_a_link_inside_the_image_is_followed(
    backend: LauncherBackend,
    context: RunContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    target: str,
) -> None:
    """An /etc that is a link, as some distributions have it, gets its hosts file."""
    image = image_with(monkeypatch, tmp_path / "cache", path, target)
    assert "localhost" in printed(backend, context, image, "cat", "/usr/etc/hosts")

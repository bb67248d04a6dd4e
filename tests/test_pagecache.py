"""What of a file is in memory, and who is charged for reading it in."""

from __future__ import annotations

import argparse
import mmap
import os
import time
from pathlib import Path

import pytest

from bench import cgroup, cgroupfs, host, pagecache, plan, registry, store
from bench.arms import resolve
from bench.backend import Mounts
from bench.commands import compare, measuring
from bench.errors import HvctError, Refused
from bench.journal import open_run
from bench.model import Event, Image, InstanceSpec, PageCache, Workload
from ct.backend import ContainerBackend

pytestmark = [pytest.mark.root, pytest.mark.alone]
TAG = f"p{os.getpid() % 10000:04d}"
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 8 MiB and a bit on a disk."""
    if host.file_system(tmp_path) == "tmpfs":
        pytest.skip("the temporary folder is a tmpfs: nothing can be dropped there")
    path = tmp_path / "image"
    path.write_bytes(os.urandom(8 * MIB + 5))
    return path


def test_drop_and_warm_are_seen(image: Path) -> None:
    """Dropped is 0, read is 1, and looking does not read anything in."""
    assert pagecache.drop(image) == 0.0
    assert pagecache.resident_fraction(image) == 0.0
    assert pagecache.warm(image) == 8 * MIB + 5
    assert pagecache.resident_fraction(image) == 1.0


def test_a_part_that_is_resident_is_a_part(image: Path) -> None:
    """Half a file read, without read-ahead, is about half a file in memory."""
    pagecache.drop(image)
    with image.open("rb", buffering=0) as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        handle.read(4 * MIB)
    resident, total = pagecache.resident_pages(image)
    assert total == 8 * MIB // mmap.PAGESIZE + 1
    assert 0.4 < resident / total < 0.8


def test_files_larger_than_one_mapping_are_added_up(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images are looked at piece by piece, with the same result."""
    whole = pagecache.resident_pages(image)
    monkeypatch.setattr(pagecache, "CHUNK_BYTES", MIB)
    assert pagecache.resident_pages(image) == whole


def test_mapped_pages_stay(image: Path) -> None:
    """What a running program has mapped cannot be dropped, and the caller is told."""
    pagecache.warm(image)
    with image.open("rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) >= 0
        assert pagecache.drop(image) > 0.9


def test_an_empty_file_and_several_files(image: Path, tmp_path: Path) -> None:
    """Nothing to read counts as read; several files are weighted by size."""
    empty = tmp_path / "empty"
    empty.touch()
    assert pagecache.resident_fraction(empty) == 1.0
    small = tmp_path / "small"
    small.write_bytes(b"x")
    pagecache.drop(image)
    assert 0 < pagecache.resident_fraction(image, small) < 0.01


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """No answer is better than a wrong one."""
    for function in (pagecache.resident_fraction, pagecache.warm, pagecache.drop):
        with pytest.raises(HvctError, match="No such file"):
            function(tmp_path / "missing")


def test_the_shared_group_pays_and_nobody_else(image: Path, tmp_path: Path) -> None:
    """Pages read in on behalf of all arms are charged to the run's shared group."""
    pagecache.drop(image)
    try:
        with pagecache.SharedCache(TAG) as shared:
            assert shared.group
            assert shared.ensure_warm([image]) == 1.0
            charged = shared.group.memory().file_bytes
            assert charged is not None
            assert charged == pytest.approx(8 * MIB, abs=MIB)
            with pytest.raises(HvctError, match="No such file"):
                shared.warm(tmp_path / "missing")
            assert shared.warm(image) == 8 * MIB + 5
    finally:
        cgroup.remove_all(TAG)
    assert not any((m / "hvct" / TAG).exists() for m in cgroupfs.layout().mounts)


def test_links_are_followed_inside_a_root(tmp_path: Path) -> None:
    """An absolute link stays below the root, and nothing climbs out of it."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/x").touch()
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "abs").symlink_to("/usr/lib/x")
    (tmp_path / "loop").symlink_to("loop")
    wanted = tmp_path / "usr/lib/x"
    assert pagecache.inside(tmp_path, "/lib/x") == wanted
    assert pagecache.inside(tmp_path, "/abs") == wanted
    assert pagecache.inside(tmp_path, "/../../lib/./x") == wanted
    assert pagecache.inside(tmp_path, "/loop") == tmp_path


def test_what_stays_in_memory_is_not_called_cold(image: Path) -> None:
    """A file that another program has mapped, or that lies in memory, is refused with how much."""
    pagecache.warm(image)
    assert pagecache.make_cold(image) == 0.0
    pagecache.warm(image)
    with image.open("rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) >= 0
        with pytest.raises(Refused, match=r"\d% of image stays in the host's memory"):
            pagecache.make_cold(image)


@pytest.mark.root
def test_a_new_mount_has_nothing_in_memory(busybox: Image, tmp_path: Path) -> None:
    """What a container has read of an image is gone once its backend has let go of the image."""
    (chosen,) = resolve(["container"])
    with open_run(tmp_path) as context, registry.make(chosen, context) as backend:
        assert isinstance(backend, ContainerBackend) and isinstance(backend, Mounts)

        def resident() -> float:
            return pagecache.resident_fraction(backend.image_root(busybox) / "bin/busybox")

        for number in (1, 2):
            spec = InstanceSpec(context.instance(number), busybox, ("/bin/sh", "-c", "exit 0"))
            backend.prepare(spec)
            assert resident() == 0.0
            with backend.launch(spec) as instance:
                assert instance.wait(Event.EXITED, time.monotonic_ns() + 20_000_000_000)
            assert resident() > 0.1
            backend.unmount()


COLD = Workload("cold", "reads all of the image", "busybox", ("sha256sum", "/bin/busybox"))
OPTIONS = argparse.Namespace(
    quiet=True, json=False, no_report=True, offline=True, libvirt_uri="", kernel=None, wait=True
)


@pytest.mark.root
@pytest.mark.vm
@pytest.mark.parametrize("state", PageCache)
def test_every_arm_starts_as_the_plan_says(
    state: PageCache, tmp_path: Path, busybox: Image
) -> None:
    """At each request nothing of the image is in memory, or all that the arm reads of it."""
    if os.geteuid() != 0:
        pytest.skip("measuring needs root")
    arms = ("vm", "container", "process")
    made = plan.Plan("cold", arms, (COLD,), 2, 3, (), {}, page_cache=state)
    run = measuring.describe_run(plan.check(made), tmp_path / "run", OPTIONS)
    assert ("calibration" in run) == (state is PageCache.WARM)
    run_store = store.RunStore.create(tmp_path / "run")
    run_store.write_run(run)
    assert measuring.measure(made, run, run_store, OPTIONS, compare.finish) == 0
    trials = store.load(tmp_path / "run").trials
    assert [trial["outcome"] for trial in trials] == ["ok"] * 6, [t["error"] for t in trials]
    assert all("settle_flagged" in trial["disturbances"] for trial in trials), "by default"
    found = {trial["disturbances"]["image_resident"] for trial in trials}
    assert found == {0.0 if state is PageCache.COLD else 1.0}

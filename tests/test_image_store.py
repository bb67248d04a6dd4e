"""The cache of images: names, content addresses, two at once, killed builds, damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench
from bench.cache import lock
from bench.errors import BadInput, HvctError
from bench.image import busybox, index, store
from bench.model import Ids, Image, ImageConfig

CHECKOUT = Path(str(bench.__file__)).parents[1]
BUILD = "from bench.image import store; print(store.prepare('busybox').digest)"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hvct"


def start(code: str) -> subprocess.Popen[str]:
    """Another hvct process with the same cache."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )


def test_busybox_is_reproducible(own_cache: Path, busybox: Image) -> None:
    """Built twice, in two caches, it is the same volume; the second time it is not built."""
    said: list[str] = []
    first = store.prepare("busybox", lambda what, fraction: said.append(what))
    assert said and own_cache in first.path.parents
    assert (first.digest, first.uuid) == (busybox.digest, busybox.uuid)
    said.clear()
    assert store.prepare("busybox", lambda what, fraction: said.append(what)) == first
    assert not said


@pytest.mark.root
def test_busybox_runs(own_cache: Path, tmp_path: Path) -> None:
    """Its applets run in a chroot that has nothing but the image."""
    tree = tmp_path / "tree"
    busybox.populate(tree, busybox.find_busybox(tmp_path))
    done = subprocess.run(
        ["chroot", tree, "/bin/sh", "-c", "true && id -un && test -d /proc && echo $((6 * 7))"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["root", "42"]
    for link in (path for path in tree.rglob("*") if path.is_symlink()):
        assert os.readlink(link) == "/bin/busybox"


def test_dynamic_programs_are_not_taken_for_static(tmp_path: Path) -> None:
    """Only an ELF file without an interpreter may be the only file of an image."""
    assert busybox.is_static(busybox.find_busybox(tmp_path))
    assert not busybox.is_static(Path(sys.executable))
    assert not busybox.is_static(Path(__file__))
    assert not busybox.is_static(tmp_path / "missing")


def test_unknown_names(own_cache: Path) -> None:
    """An unknown image is bad input that says what there is; a missing built-in can be built."""
    for call in (store.check_name, store.resolve, store.prepare, store.inspect, store.remove):
        with pytest.raises(BadInput, match="no image 'nope'") as caught:
            call("nope")
        assert "busybox" in caught.value.hint
    store.check_name("default")
    with pytest.raises(HvctError, match="not built yet"):
        store.resolve("default")


def test_list_inspect_remove(own_cache: Path) -> None:
    """What is built is listed and described, and gone with its volume when removed."""
    assert store.list_images() == []
    image = store.prepare("busybox")
    assert store.list_images() == [image] and store.resolve("busybox") == image
    shown = json.loads(json.dumps(store.inspect("busybox")))
    assert shown["digest"] == image.digest and shown["config"]["cmd"] == ["/bin/sh"]
    assert shown["created"].endswith("Z")
    store.remove("busybox")
    assert store.list_images() == [] and not image.path.exists()
    assert store.prepare("busybox") == image


def test_two_names_of_one_volume(own_cache: Path, tmp_path: Path) -> None:
    """Same files, other configuration: one volume, which the last name takes with it."""
    images = []
    for name in ("one", "two"):
        (tmp_path / name / "tree").mkdir(parents=True)
        os.utime(tmp_path / name / "tree", (1000, 1000))
        (tmp_path / name / "tree").chmod(0o755)
        settings = ImageConfig(cmd=(name,), ids=Ids(1, 2, (3,)), env=(("A", "b"),))
        images.append(
            index.store_tree(name, tmp_path / name / "tree", settings, source="test", recipe="")
        )
    assert images[0].path == images[1].path
    assert [store.resolve(name).config.cmd for name in ("one", "two")] == [("one",), ("two",)]
    assert store.resolve("one") == images[0]
    store.remove("one")
    assert images[1].path.exists()
    store.remove("two")
    assert not images[1].path.exists()


@pytest.mark.parametrize("damage", ["volume cut", "volume gone", "entry cut", "entry of tomorrow"])
def test_damage_is_repaired(own_cache: Path, damage: str) -> None:
    """A damaged or half-deleted cache is no image: the built-in one is built anew."""
    image = store.prepare("busybox")
    entry = index.entry_path("busybox")
    if damage == "volume cut":
        os.truncate(image.path, 5000)
    elif damage == "volume gone":
        image.path.unlink()
    elif damage == "entry cut":
        entry.write_text(entry.read_text()[:50])
    else:
        entry.write_text(json.dumps({**json.loads(entry.read_text()), "format": 99}))
    assert store.list_images() == []
    assert store.prepare("busybox") == image
    assert image.path.stat().st_size == image.size_bytes


def test_outdated_recipe_is_built_again(own_cache: Path) -> None:
    """A built-in image of an older hvct is replaced, and its volume goes when unnamed."""
    image = store.prepare("busybox")
    path = index.entry_path("busybox")
    path.write_text(path.read_text().replace(busybox.RECIPE, "busybox-0"))
    stale = index.images_dir() / "sha256-0123.erofs"  # what a killed build left
    stale.write_bytes(b"old")
    assert store.prepare("busybox") == image
    assert image.path.exists() and not stale.exists()


def test_two_at_once(own_cache: Path) -> None:
    """Processes that need the same image at once each get it, and it is built once."""
    started = [start(BUILD) for _ in range(3)]
    digests = {process.communicate(timeout=60)[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(digests) == 1 and digests != {""}
    assert len(list((own_cache / "images").iterdir())) == 2
    assert list((own_cache / "tmp").iterdir()) == []


def test_killed_build_leaves_nothing(own_cache: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle of a build the next build sweeps up and succeeds."""
    code = (
        "import time; from bench.image import index\n"
        "with index.build_space() as space:\n"
        "    (space / 'half').write_text('x'); print('in', flush=True); time.sleep(60)"
    )
    killed, alive = start(code), start(code)
    for process in (killed, alive):
        assert process.stdout is not None and process.stdout.readline() == "in\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    assert len(list((own_cache / "tmp").iterdir())) == 2
    image = store.prepare("busybox")
    assert len(list((own_cache / "tmp").iterdir())) == 1, "a live build keeps its workspace"
    alive.kill()
    alive.communicate(timeout=10)
    store.remove("busybox")
    assert store.prepare("busybox") == image
    assert list((own_cache / "tmp").iterdir()) == []


def test_kill_at_any_moment(own_cache: Path) -> None:
    """Killed at whatever moment, the cache never holds a name without its whole volume."""
    for delay_s in (0.02, 0.05, 0.08, 0.11, 0.14, 0.17):
        process = start(BUILD)
        time.sleep(delay_s)
        process.kill()
        process.communicate(timeout=10)
        for image in store.list_images():
            assert image.path.stat().st_size == image.size_bytes
            store.remove(image.name)
    assert store.prepare("busybox").path.exists()


def test_waits_for_the_other_builder(own_cache: Path) -> None:
    """While another process builds the image, a second one waits instead of building too."""
    with lock("image-busybox"):
        process = start(BUILD)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
    assert process.communicate(timeout=30)[0] and process.returncode == 0


def test_users_of_an_image(own_cache: Path) -> None:
    """A workload's user is looked up in the image's own tables, without unpacking it again."""
    image = store.prepare("busybox")
    assert store.ids_for(image, None) == image.config.ids
    assert store.ids_for(image, "nobody") == Ids(65534, 65534, (65534,), "/nonexistent")
    assert store.ids_for(image, "12:tty") == Ids(12, 5, (5,))
    with pytest.raises(BadInput, match="no user 'redis'"):
        store.ids_for(image, "redis")


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be made is one line that says which variable to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(HvctError) as caught:
        store.prepare("busybox")
    assert "XDG_CACHE_HOME" in caught.value.hint


@pytest.mark.root
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the build fails in one line, and nothing half-made is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], check=True)
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
        with pytest.raises(HvctError) as caught:
            store.prepare("busybox")
        assert "\n" not in caught.value.message and "space" in caught.value.message.lower()
        assert "XDG_CACHE_HOME" in caught.value.hint
        assert list((disk / "hvct" / "tmp").iterdir()) == []
        assert list((disk / "hvct" / "images").iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)

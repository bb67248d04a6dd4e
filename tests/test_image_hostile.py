"""Images made to hurt: refused in one line or taken whole, and nothing is written outside.

Over 400 lines, since each kind of attack stands beside what must come of it.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import io
import json
import os
import random
import re
import stat
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
import pytest
from archives import (
    BASE,
    Layout,
    configuration,
    docker_save,
    entry,
    folder,
    layer,
    layout_of,
    link,
    mounted,
)

from bench.cache import remove_tree
from bench.errors import BadInput
from bench.image import archive, oci, store
from bench.image.index import host_architecture
from bench.image.members import Budget, read_layer

pytestmark = pytest.mark.root

KIND = "application/vnd.oci.image"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own; beside it nothing may appear or change."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    guarded = tmp_path / "guarded"
    guarded.mkdir()
    (guarded / "kept").write_text("kept")
    before = set(os.listdir("/")), set(os.listdir("/tmp")), set(os.listdir("/dev"))
    yield cache
    after = set(os.listdir("/")), set(os.listdir("/tmp")), set(os.listdir("/dev"))
    assert after[0] == before[0] and after[2] == before[2]
    assert not {name for name in after[1] - before[1] if "hostile" in name}
    assert [path.read_text() for path in guarded.iterdir()] == ["kept"]
    assert list((cache / "hvct" / "tmp").glob("*")) == []


def outcome(path: Path) -> str:
    """What importing it ends with: "taken", or one line what and one line what to do."""
    try:
        store.import_archive(path, "mine")
    except BadInput as error:
        assert "\n" not in error.message and error.hint, error
        assert store.list_images() == []
        return error.message
    store.remove("mine")
    return "taken"


# --- layers ---------------------------------------------------------------------------------


def raw_name(name: bytes) -> bytes:
    """A layer with an empty file of any name at all (up to 100 bytes)."""
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    head[: len(name)] = name
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


def pax(**headers: str) -> bytes:
    """A layer with one file that has these extended headers."""
    return layer(entry("a", b"x", pax_headers=headers))


UP = "../" * 12
REFUSED: dict[str, tuple[bytes, str]] = {
    "dot-dot": (layer(entry(f"{UP}tmp/hostile", b"x")), "points out"),
    "dot-dot in the middle": (layer(entry("a/../../tmp/hostile", b"x")), "points out"),
    "hard link out": (layer(link("h", f"{UP}etc/passwd", tarfile.LNKTYPE)), "hard link out"),
    "link to nothing": (layer(link("l", "")), "link to nothing"),
    "link too long": (layer(link("l", "t" * 5000)), "link to nothing"),
    "2,000 folders deep": (layer(entry("/".join(["d"] * 2000), b"x")), "deep"),
    "a path of 15,000 bytes": (layer(entry("/".join(["dddd"] * 3000), b"x")), "deep"),
    "a name of 255 bytes": (layer(entry("n" * 255, b"x")), "name of more than"),
    "a name of 4,000 bytes": (layer(entry("n" * 4000, b"x")), "name of more than"),
    "NUL in a name": (pax(path="a\0b"), "NUL"),
    "owner beyond 32 bits": (layer(entry("a", b"x", uid=2**40, mode=0o4755)), "belongs to"),
    "device beyond its bits": (
        layer(entry("d", kind=tarfile.BLKTYPE, devmajor=2**20, devminor=0)),
        "device",
    ),
    "pax header of 2 MB": (pax(comment="x" * 2_000_000), "header is larger"),
    "pax header of 20 MB": (pax(comment="x" * 20_000_000), "header is larger"),
    "name of 20 MB": (layer(entry("n" * 20_000_000, b"x")), "header is larger"),
    "negative size": (pax(size="-1536"), "negative|damaged"),
    "size of 10^30": (pax(size="9" * 30), "damaged|more than"),
    "size of 10,000 digits": (pax(size="9" * 10_000), "damaged"),
    "time that is no number": (pax(mtime="nan"), "damaged"),
    "endless time": (pax(mtime="inf"), "damaged"),
    "attribute of 70 kB": (pax(**{"SCHILY.xattr.user.big": "x" * 70_000}), "damaged"),
    "unknown kind": (layer(entry("a", b"x", kind=b"Z")), "damaged"),
    "passwd is a pipe": (layer(entry("etc/passwd", kind=tarfile.FIFOTYPE)), "table of accounts"),
    "passwd is a folder": (
        layer(entry(".wh.etc"), folder("etc"), folder("etc/passwd")),
        "table of accounts",
    ),
    "passwd is of 5 MB": (layer(entry("etc/passwd", bytes(5 << 20))), "table of accounts"),
    "root is a whiteout": (layer(entry(".wh.."), entry(".wh...")), "damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_layer_is_refused(kind: str, tmp_path: Path) -> None:
    """With its reason, before umoci or mkfs.erofs can stumble over it or follow it."""
    data, said = REFUSED[kind]
    message = outcome(layout_of(tmp_path / "layout", BASE, data))
    assert re.search(said, message), message


def test_an_odd_layer_is_taken_as_it_is(tmp_path: Path) -> None:
    """Names in no encoding, control characters, entries twice, absolute names, devices, depth."""
    deep = "/".join(["d"] * 500)
    device = entry("disk", kind=tarfile.BLKTYPE, devmajor=8, devminor=0)
    odd = (
        raw_name(b"in\xff\xfevalid"),
        raw_name(b"a\nb\x1b[31m"),
        layer(entry("twice", b"1"), entry("twice", b"22"), folder("twice"), entry("twice", b"333")),
        layer(entry("/absolute", b"x"), link("etc2", "/etc"), link("up", f"{UP}etc"), device),
        layer(entry("n" * 254, b"x"), entry(deep + "/f", b"x"), link("long", "t" * 4095)),
        layer(entry("before", b"", mtime=-5), entry("after", b"", mtime=2**40)),
    )
    image = store.import_archive(layout_of(tmp_path / "layout", BASE, *odd), "odd")
    with mounted(image, tmp_path / "root") as root:
        names = set(os.listdir(os.fsencode(root)))
        assert {b"in\xff\xfevalid", b"a\nb\x1b[31m", b"n" * 254} <= names
        assert (root / "twice").read_bytes() == b"333"
        assert (root / "absolute").read_bytes() == b"x"
        assert stat.S_ISBLK((root / "disk").stat().st_mode)
        assert os.readlink(root / "long") == "t" * 4095
        assert (root / deep / "f").read_bytes() == b"x"
    listed = faults.hvct("image", "inspect", "odd")
    assert listed.code == 0 and json.loads(listed.out)["name"] == "odd"


def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    """They are all there, the check takes little memory, and it all ends within minutes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(100_000):
            tar.addfile(tarfile.TarInfo(f"d{number // 1000}/{number}"))
    began = time.monotonic()
    image = store.import_archive(layout_of(tmp_path / "layout", made.getvalue()), "many")
    assert time.monotonic() - began < 300
    with mounted(image, tmp_path / "root") as root:
        assert sum(len(names) for _, _, names in os.walk(root)) == 100_000


def test_a_tree_deeper_than_pythons_stack_is_removed(tmp_path: Path) -> None:
    """Else one hostile image would make every later build fail at sweeping."""
    top = tmp_path / "deep"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(top)
    assert not top.exists()


def bomb(gibibytes: int) -> bytes:
    """A gzip stream of one file of zeros, made without making the zeros."""
    info = tarfile.TarInfo("zeros")
    info.size = gibibytes << 30
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(info.tobuf(tarfile.GNU_FORMAT)) + packer.flush(zlib.Z_FULL_FLUSH)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + mebibyte * (gibibytes << 10)


def test_a_bomb_names_the_option(tmp_path: Path) -> None:
    """A small layer that unpacks to 64 GiB is refused at its header, and --max-size is named."""
    made = Layout(tmp_path / "layout")
    settings = json.dumps(configuration((b"",), {}, host_architecture())).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{KIND}.manifest.v1+json",
        "config": made.blob(settings, f"{KIND}.config.v1+json"),
        "layers": [made.blob(bomb(64)[: 1 << 20], f"{KIND}.layer.v1.tar+gzip")],
    }
    made.write(made.blob(json.dumps(manifest).encode(), f"{KIND}.manifest.v1+json"))
    done = faults.hvct("image", "import", made.path, "--max-size", "1.5GiB")
    done.says(2, r"unpacks to more than 1\.5 GiB", "--max-size 3GiB")
    done = faults.hvct("image", "import", made.path, "--max-size", "much")
    done.says(2, "--max-size: 'much' is no size", "40GiB")


def test_many_empty_files_count_too(tmp_path: Path) -> None:
    """Each takes a block: a million empty ones are no small image."""
    layout = layout_of(tmp_path / "layout", layer(*[entry(f"{n}") for n in range(3000)]))
    with pytest.raises(BadInput, match="more than"):
        store.import_archive(layout, "mine", max_bytes=8 << 20)


def test_what_follows_the_archive_counts_too() -> None:
    """Zeros after the end of the archive are unpacked by whoever checks the layer's digest."""
    tail = io.BytesIO(gzip.compress(BASE + bytes(64 << 20), 1))
    with pytest.raises(BadInput, match="more than"), gzip.open(tail) as stream:
        read_layer(stream, Budget("x", 32 << 20))  # type: ignore[arg-type]


def test_the_map_of_a_sparse_file_is_bounded() -> None:
    """A map of millions of pieces is a header, however small it is when compressed."""
    pieces = 3_000_000
    info = tarfile.TarInfo("sparse")
    content = f"{pieces}\n".encode() + b"0\n" * (2 * pieces)
    info.size = len(content)
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "x",
        "GNU.sparse.realsize": "1",
    }
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    made.seek(0)
    with pytest.raises(BadInput, match="header is larger"):
        read_layer(made, Budget("x", 1 << 40))


# --- what describes them --------------------------------------------------------------------

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 1.5, 10**40, "", "x", "sha256:../../../../etc/passwd", "\ud800"),
    *([], [1], ["a"], {}, {"a": 1}),
)
CONFIG = {
    "User": "0",
    "Env": ["A=1"],
    "Cmd": ["x"],
    "Entrypoint": ["y"],
    "WorkingDir": "/",
    "StopSignal": "SIGTERM",
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/v": {}},
}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield (*place, key)
        yield from places(inner, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], wrong: Any) -> Any:
    """A copy with one value changed."""
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = wrong
    return made


def oci_of(path: Path, change: Callable[[str, Any], Any]) -> Path:
    """An OCI layout whose three documents go through `change` before they are stored."""
    made = Layout(path)

    def document(name: str, value: Any, kind: str) -> dict[str, Any]:
        return made.blob(json.dumps(change(name, value)).encode(), f"{KIND}.{kind}.v1+json")

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{KIND}.manifest.v1+json",
        "config": document("config", configuration((BASE,), CONFIG, host_architecture()), "config"),
        "layers": [made.blob(gzip.compress(BASE, 1, mtime=0), f"{KIND}.layer.v1.tar+gzip")],
    }
    platform = {"architecture": host_architecture(), "os": "linux"}
    entry = {**document("manifest", manifest, "manifest"), "platform": platform}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {"a": "b"}}]}
    (path / "index.json").write_text(json.dumps(change("index", index)))
    return path


def test_every_type_at_every_place(tmp_path: Path) -> None:
    """No value in index, manifest or configuration leads to more than a line of complaint.

    Of the thousand cases a random part, another each time, and each place at least once.
    """
    chance = random.Random(seed := time.time_ns())
    print(f"seed {seed}")
    documents: dict[str, Any] = {}
    assert outcome(oci_of(tmp_path / "good", lambda name, it: documents.setdefault(name, it))) == (
        "taken"
    )
    results: dict[str, int] = {}
    number = 0
    for name, value in documents.items():
        for place in places(value):
            for wrong in chance.sample(WRONG, 2):
                number += 1

                def change(which: str, it: Any, at: Any = (name, place), wrong: Any = wrong) -> Any:
                    return replaced(it, at[1], wrong) if which == at[0] else it

                said = outcome(oci_of(tmp_path / str(number), change))
                results[said[:20]] = results.get(said[:20], 0) + 1
    assert results["taken"] < number and len(results) > 3, results


def test_every_type_in_docker_save(tmp_path: Path) -> None:
    """The same for the manifest of docker save."""
    good = docker_save(tmp_path / "good.tar", BASE)
    with tarfile.open(good) as saved:
        members = [(one, saved.extractfile(one).read()) for one in saved]  # type: ignore[union-attr]
    manifest = json.loads(members[-1][1])
    assert outcome(good) == "taken"
    for place in places(manifest):
        for wrong in WRONG[::2]:
            data = json.dumps(replaced(manifest, place, wrong)).encode()
            bad = tmp_path / "bad.tar"
            bad.write_bytes(layer(*members[:-1], entry("manifest.json", data)))
            outcome(bad)


def nested(layout: Layout, depth: int) -> dict[str, Any]:
    """Indexes in each other."""
    inner = layout.image(BASE)
    platform = {"architecture": host_architecture(), "os": "linux"}
    for _ in range(depth):
        index = {"schemaVersion": 2, "mediaType": f"{KIND}.index.v1+json", "manifests": [inner]}
        kind = f"{KIND}.index.v1+json"
        inner = layout.blob(json.dumps(index).encode(), kind, platform=platform)
    return inner


def test_indexes_of_every_size(tmp_path: Path) -> None:
    """Cycles (which need a wrong digest), towers and enormous ones are refused at once."""
    cycle = Layout(tmp_path / "cycle")
    name = "a" * 64
    itself = {"mediaType": f"{KIND}.index.v1+json", "digest": f"sha256:{name}", "size": 1}
    text = json.dumps({"schemaVersion": 2, "manifests": [itself]})
    (cycle.path / "blobs/sha256" / name).write_text(text)
    assert "does not fit its digest" in outcome(cycle.write(itself))
    tower = Layout(tmp_path / "tower")
    assert "damaged" in outcome(tower.write(nested(tower, 100)))
    wide = Layout(tmp_path / "wide")
    image = wide.image(BASE)
    assert "larger than 4 MiB" in outcome(wide.write(*[image] * 40_000))
    assert "several images" in outcome(wide.write(*[image] * 1000))
    (wide.path / "index.json").write_text('{"manifests":' + "[" * 100_000)
    assert "cannot be read" in outcome(wide.path)


def test_sizes_that_lie(tmp_path: Path) -> None:
    """A descriptor's size that is not the blob's is damage, or of no consequence."""
    for number, size in enumerate((0, 10, 10**18, 2**63)):

        def change(name: str, value: Any, size: int = size) -> Any:
            return replaced(value, ("layers", 0, "size"), size) if name == "manifest" else value

        assert "damaged" in outcome(oci_of(tmp_path / str(number), change))


def test_too_many_layers_and_members(tmp_path: Path) -> None:
    """Each costs time in umoci, or memory with us: 127 layers are usual at most."""
    space = tmp_path / "space"
    space.mkdir()
    made = layout_of(tmp_path / "layout", BASE)
    layout = oci.copy(archive.locate(made, space, 1 << 30), "x", space)
    oci.check_layers(layout, "x", 1 << 30)
    layers = dataclasses.replace(layout, layers=layout.layers * 501)
    with pytest.raises(BadInput, match="501 layers"):
        oci.check_layers(layers, "x", 1 << 40)
    member = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "many.tar").write_bytes(member * 50_001)
    assert "more than 50000 members" in outcome(tmp_path / "many.tar")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """Pipes and devices in place of archive, index, manifest or layer do not hold us up."""
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file nor a folder" in outcome(tmp_path / "pipe")
    assert "neither a file nor a folder" in outcome(Path("/dev/zero"))
    layout = layout_of(tmp_path / "layout", BASE)
    for blob in [layout / "index.json", *(layout / "blobs/sha256").iterdir()]:
        data = blob.read_bytes()
        blob.unlink()
        os.mkfifo(blob)
        outcome(layout)
        blob.unlink()
        blob.symlink_to("/dev/zero")
        outcome(layout)
        blob.unlink()
        blob.write_bytes(data)
    assert outcome(layout) == "taken"


def test_megabytes_of_arguments(tmp_path: Path) -> None:
    """An image with 3 MB of them is kept; a line says why it cannot be run, or why not kept."""
    for name, config in (
        ("env", {"Env": ["A=" + "x" * 3_000_000], "Cmd": ["true"]}),
        ("cmd", {"Cmd": ["x" * 100] * 30_000}),
    ):
        layout = layout_of(tmp_path / name, BASE, **config)
        assert faults.hvct("image", "import", layout, "--name", name).code == 0
        faults.hvct("run", name).says(2, "1 MiB", "shorten|smaller")
        store.remove(name)
    assert "config" in outcome(layout_of(tmp_path / "huge", BASE, Env=["A=" + "x" * 5_000_000]))

"""Importing OCI layouts and docker save archives, good, unusual and damaged ones."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from archives import (
    BASE,
    MTIME,
    Layout,
    docker_save,
    entry,
    folder,
    layer,
    layout_of,
    link,
    mounted,
    tarred,
)

from bench.errors import BadInput
from bench.image import store
from bench.image.index import host_architecture
from bench.model import Ids

pytestmark = pytest.mark.root

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # net_bind_service, effective


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hvct"


def refused(path: Path, **options: Any) -> BadInput:
    """The error an import ends with; nothing of it is left in the cache."""
    with pytest.raises(BadInput) as caught:
        store.import_archive(path, **options)
    assert "\n" not in caught.value.message and caught.value.hint
    assert store.list_images() == []
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "hvct"
    assert list((cache / "tmp").glob("*")) == []
    return caught.value


# --- good images ------------------------------------------------------------------------


def test_all_forms_of_one_image_are_the_same_bytes(tmp_path: Path) -> None:
    """Folder, tar and docker save of the same layers give the same volume, every time."""
    layout = layout_of(tmp_path / "layout", BASE)
    forms = [
        layout,
        tarred(layout, tmp_path / "with:colon.tar"),
        docker_save(tmp_path / "saved.tar", BASE),
    ]
    for ending, compress in {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}.items():
        compressed = tmp_path / f"saved.tar.{ending}"
        compressed.write_bytes(compress(forms[2].read_bytes()))
        forms.append(compressed)
    images = [store.import_archive(form) for form in forms]
    assert len({image.digest for image in images}) == 1
    assert len({image.uuid for image in images}) == 1
    assert {image.name for image in store.list_images()} == {"layout", "with-colon", "shop/app:1"}
    store.remove("layout")
    assert images[0].path.exists(), "other names still mean this volume"


def test_configuration_is_read(tmp_path: Path) -> None:
    """Entrypoint, cmd, environment, user, directory, stop signal, ports and volumes arrive."""
    image = store.import_archive(
        layout_of(
            tmp_path / "layout",
            BASE,
            Entrypoint=["/bin/app"],
            Cmd=["--serve", "a b"],
            Env=["A=1=2", "EMPTY="],
            User="app",
            WorkingDir="/srv",
            StopSignal="SIGQUIT",
            ExposedPorts={"80/tcp": {}},
            Volumes={"/data": {}},
        ),
        "mine",
    )
    config = image.config
    assert (config.entrypoint, config.cmd) == (("/bin/app",), ("--serve", "a b"))
    assert dict(config.env)["A"] == "1=2" and dict(config.env)["EMPTY"] == ""
    assert "/usr/bin" in dict(config.env)["PATH"]
    assert (config.user, config.ids) == ("app", Ids(1000, 1001, (1001, 2000), "/"))
    assert (config.workdir, config.stop_signal) == ("/srv", "SIGQUIT")
    assert (config.exposed_ports, config.volumes) == (("80/tcp",), ("/data",))
    assert store.resolve("mine") == image, "the cache gives back what was stored"
    assert store.ids_for(image, "1000:extra") == Ids(1000, 2000, (2000,), "/")


def test_layers_are_applied_as_container_engines_do(tmp_path: Path) -> None:
    """Whiteouts, replaced folders, hard links, setuid, devices, attributes, owners and times."""
    info, data = entry("bin/server", b"server", mode=0o4755)
    info.pax_headers = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"),
        "SCHILY.xattr.user.note": "kept",
    }
    first = layer(
        folder("bin"),
        (info, data),
        folder("gone"),
        entry("gone/file", b"1"),
        folder("opaque"),
        entry("opaque/old", b"1"),
        folder("becomes-link"),
        entry("becomes-link/x", b"1"),
        entry("whole", b"shared" * 2000),
        link("again", "whole", tarfile.LNKTYPE),
        entry("disk", kind=tarfile.BLKTYPE, devmajor=7, devminor=3),
        entry("pipe", kind=tarfile.FIFOTYPE),
        entry("owned", b"", uid=70000, gid=70001, mtime=MTIME - 1000),
    )
    second = layer(
        entry(".wh.gone"),
        folder("opaque"),
        entry("opaque/.wh..wh..opq"),
        entry("opaque/new", b"2"),
        link("becomes-link", "/etc/absolute"),
    )
    image = store.import_archive(layout_of(tmp_path / "layout", BASE, first, second), "layers")
    with mounted(image, tmp_path / "root") as root:
        assert not (root / "gone").exists()
        assert os.listdir(root / "opaque") == ["new"]
        assert os.readlink(root / "becomes-link") == "/etc/absolute"
        assert (root / "whole").stat().st_ino == (root / "again").stat().st_ino
        assert (root / "again").read_bytes() == b"shared" * 2000
        assert (root / "bin/server").stat().st_mode == 0o104755
        assert os.getxattr(root / "bin/server", "user.note") == b"kept"
        assert os.getxattr(root / "bin/server", "security.capability")[:8] == CAPABILITY[:8]
        assert (root / "disk").is_block_device()
        assert (root / "disk").stat().st_rdev == os.makedev(7, 3)
        assert (root / "pipe").is_fifo()
        owned = (root / "owned").stat()
        assert (owned.st_uid, owned.st_gid, owned.st_mtime) == (70000, 70001, MTIME - 1000)
        assert max(path.lstat().st_mtime for path in root.rglob("*")) == MTIME
    assert image.newest_mtime == MTIME


def test_many_architectures(tmp_path: Path) -> None:
    """From an index, flat or nested, ours is taken; without ours it is bad input."""
    other = "arm64" if host_architecture() != "arm64" else "amd64"
    flat = Layout(tmp_path / "flat")
    theirs = flat.image(layer(entry("theirs")), architecture=other)
    ours = flat.image(layer(entry("ours")))
    attestation = {**theirs, "platform": {"architecture": "unknown", "os": "unknown"}}
    flat.write(theirs, ours, attestation)
    image = store.import_archive(flat.path)
    with mounted(image, tmp_path / "flat-root") as root:
        assert os.listdir(root) == ["ours"]
    index = json.dumps({"schemaVersion": 2, "manifests": [theirs, ours]}).encode()
    flat.write(flat.blob(index, "application/vnd.oci.image.index.v1+json"))
    assert store.import_archive(flat.path, "nested").digest == image.digest
    store.remove("flat")
    store.remove("nested")
    only = json.dumps({"schemaVersion": 2, "manifests": [theirs]}).encode()
    flat.write(flat.blob(only, "application/vnd.oci.image.index.v1+json"))
    assert host_architecture() in refused(flat.path).message
    flat.write(theirs)
    error = refused(flat.path)
    assert other in error.message and host_architecture() in error.message


def test_layers_compressed_with_zstd(tmp_path: Path) -> None:
    """A zstd layer, which umoci cannot read, gives the same volume as a gzip one."""
    plain = layout_of(tmp_path / "plain", BASE)
    modern = tmp_path / "modern"
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "--quiet"),
            *("--dest-compress", "--dest-compress-format", "zstd"),
            *(f"oci:{plain}", f"oci:{modern}:latest"),
        ],
        check=True,
    )
    manifest = json.loads((modern / "index.json").read_text())["manifests"][0]["digest"]
    if "zstd" not in (modern / "blobs" / manifest.replace(":", "/")).read_text():
        archive = docker_save(tmp_path / "saved.tar", BASE)
        subprocess.run(
            [
                *("skopeo", "--insecure-policy", "copy", "--quiet"),
                *("--dest-compress-format", "zstd"),
                *(f"docker-archive:{archive}", f"oci:{tmp_path / 'second'}:latest"),
            ],
            check=True,
        )
        modern = tmp_path / "second"
        manifest = json.loads((modern / "index.json").read_text())["manifests"][0]["digest"]
    assert "zstd" in (modern / "blobs" / manifest.replace(":", "/")).read_text()
    images = [store.import_archive(plain), store.import_archive(modern)]
    assert images[0].digest == images[1].digest


def test_what_skopeo_writes_is_read(tmp_path: Path) -> None:
    """oci-archive and docker-archive made by skopeo import, with their names."""
    layout = layout_of(tmp_path / "layout", BASE)
    forms = (f"oci-archive:{tmp_path}/one.tar:app", f"docker-archive:{tmp_path}/two.tar:a/b:2")
    for form in forms:
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}", form]
        subprocess.run(argv, check=True)
    assert store.import_archive(tmp_path / "one.tar").name == "app"
    assert store.import_archive(tmp_path / "two.tar").name == "a/b:2"


# --- bad ones ---------------------------------------------------------------------------


def test_not_an_archive(tmp_path: Path) -> None:
    """A missing path, a text file, an empty folder and a foreign tar are each explained."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign.tar").write_bytes(BASE)
    for name in ("missing", "text", "empty", "foreign.tar"):
        assert name in refused(tmp_path / name).message


def test_damaged_archives(tmp_path: Path) -> None:
    """Cut-off archives and malformed metadata are bad input, wherever the damage is."""
    whole = docker_save(tmp_path / "whole.tar", BASE).read_bytes()
    layout = tarred(layout_of(tmp_path / "layout", BASE), tmp_path / "l.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for data in (whole, layout, gzip.compress(whole)):
        for part in (0, 100, 600, len(data) // 2, len(data) * 3 // 4):
            if data[part:].strip(b"\0"):
                cut.write_bytes(data[:part])
                refused(cut)
    for index in ("", "[]", "{", '{"manifests": 1}', '{"manifests": []}', '{"manifests": [{}]}'):
        (tmp_path / "layout" / "index.json").write_text(index)
        refused(tmp_path / "layout")
    for manifest in (b"{}", b"[]", b"[1]", b"[{}, {}]", b"[{}]", b"{"):
        cut.write_bytes(layer(entry("manifest.json", manifest)))
        refused(cut)


def test_damaged_blobs(tmp_path: Path) -> None:
    """A layer or manifest that is not what its digest says, or is missing, is bad input."""
    layout = layout_of(tmp_path / "layout", BASE)
    for blob in sorted((layout / "blobs" / "sha256").iterdir()):
        data = blob.read_bytes()
        for wrong in (data[:-9], data[:40] + b"XX" + data[42:], b"", None):
            blob.unlink()
            if wrong is not None:
                blob.write_bytes(wrong)
            refused(layout)
            blob.write_bytes(data)
    store.import_archive(layout)


def test_layers_that_are_no_archives(tmp_path: Path) -> None:
    """A layer whose digests all fit but which is cut off or no tar is bad input."""
    large = layer(entry("a", b"1" * 9000), entry("b", b"2" * 9000))
    for number, data in enumerate((BASE[:700], b"no tar" * 200, large[:5000], large[:12000])):
        assert "damaged" in refused(layout_of(tmp_path / f"layout{number}", data)).message


def test_malformed_configuration(tmp_path: Path) -> None:
    """Configuration of the wrong types, and users that do not exist, are bad input."""
    wrong: tuple[dict[str, Any], ...] = (
        {"User": "nobody-here"},
        {"User": "0:no-group"},
        {"User": str(2**32)},
        {"StopSignal": "SIGNOTHING"},
        {"StopSignal": "99"},
    )
    for number, config in enumerate(wrong):
        refused(layout_of(tmp_path / f"layout{number}", BASE, **config))


def test_layers_cannot_write_outside(tmp_path: Path) -> None:
    """Dot-dot, absolute paths, and links out of the tree never touch the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    up = "../" * 12
    away = str(outside)
    attacks = (
        layer(entry(f"{up}{away}/new", b"bad"), entry(f"{away}/new", b"bad")),
        layer(link("door", away), entry("door/new", b"bad")),
        layer(link("door", f"{up}{away}"), entry("door/new", b"bad"), entry("door/kept", b"bad")),
        layer(link("hard", f"{away}/kept", tarfile.LNKTYPE), entry("hard", b"bad")),
        layer(link(".", away), entry("new", b"bad")),
        layer(link("door", away), entry("door/.wh.kept"), entry("door/.wh..wh..opq")),
        layer(folder(".."), entry("../new", b"bad"), entry("..", b"bad")),
    )
    for number, attack in enumerate(attacks):
        try:
            image = store.import_archive(layout_of(tmp_path / f"layout{number}", BASE, attack))
            with mounted(image, tmp_path / f"root{number}") as root:
                for path in root.rglob("*"):
                    assert path.is_symlink() or path.name != "kept" or number == 2
        except BadInput:
            pass
        assert os.listdir(outside) == ["kept"]
        assert (outside / "kept").read_text() == "kept"
        assert not (tmp_path / "cache" / "hvct" / "tmp" / "new").exists()


def test_archive_itself_cannot_write_outside(tmp_path: Path) -> None:
    """Members of the outer tar that are no part of a layout are never written anywhere."""
    layout = layout_of(tmp_path / "layout", BASE)
    hostile = tarred(layout, tmp_path / "hostile.tar")
    with tarfile.open(hostile, "a") as archive:
        for info, data in (
            entry("../escaped", b"bad"),
            link("blobs/sha256/" + "0" * 64, "/etc/passwd"),
            link("blobs/sha512", "../../.."),
            entry("blobs/sha512/escaped", b"bad"),
            entry("/tmp/hvct-escaped", b"bad"),
        ):
            archive.addfile(info, io.BytesIO(data))
    store.import_archive(hostile)
    assert not list(tmp_path.rglob("escaped")) and not Path("/tmp/hvct-escaped").exists()


def test_user_tables_cannot_point_at_the_host(tmp_path: Path) -> None:
    """An image whose passwd is a link to the host's has no users of the host."""
    hostile = layer(folder("etc"), link("etc/passwd", "../../../../../etc/passwd"))
    refused(layout_of(tmp_path / "layout", hostile, User="daemon"))


def test_size_limit(tmp_path: Path) -> None:
    """An image that would unpack to more than allowed is refused before it is unpacked."""
    bomb = layer(entry("zeros", bytes(8 << 20)))
    layout = layout_of(tmp_path / "layout", bomb)
    assert "more than" in refused(layout, max_bytes=4 << 20).message
    assert store.import_archive(layout, max_bytes=9 << 20).size_bytes > 8 << 20


def test_sparse_members_count_in_full(tmp_path: Path) -> None:
    """A sparse file counts as what it unpacks to, not as what it takes in the archive."""
    big = tmp_path / "big"
    with big.open("wb") as handle:
        handle.truncate(64 << 20)
    subprocess.run(["tar", "-cSf", tmp_path / "sparse.tar", "-C", tmp_path, "big"], check=True)
    sparse = (tmp_path / "sparse.tar").read_bytes()
    assert len(sparse) < 1 << 20
    assert "more than" in refused(layout_of(tmp_path / "layout", sparse), max_bytes=1 << 20).message


def test_names(tmp_path: Path) -> None:
    """Names of built-in images and impossible names are refused; others are kept apart."""
    layout = layout_of(tmp_path / "layout", BASE)
    for name in ("default", "busybox", "", "..", "/etc/passwd", "a b", "x" * 300, "-x", "a\n"):
        refused(layout, name=name)
    shutil.copytree(layout, tmp_path / "default")
    refused(tmp_path / "default")
    for name in ("a/b:1", "a-2Fb:1", "A", "a"):
        assert store.import_archive(layout, name).name == name
    assert len(store.list_images()) == 4

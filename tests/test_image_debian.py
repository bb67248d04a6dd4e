"""The default image: what is in it, what of the host is not, and that it is reproducible."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.errors import HostCannot
from bench.image import debian, store
from bench.image.erofs import walk
from bench.model import Image

STANZA = """\
Types: deb
URIs: http://mirror.example/debian
Suites: {suites}
Components: {components}
"""

STATUS = "exit status "
VERSIONS = {
    "redis-server --version": (0, r"^Redis server v=\d+\.\d"),
    "nginx -t -e stderr": (0, "nginx.conf test is successful"),
    "sysbench --version": (0, r"^sysbench \d+\.\d"),
    "stress-ng --version": (0, r"^stress-ng, version \d+\.\d"),
    "fio --version": (0, r"^fio-\d+\.\d"),
    "iperf3 --version": (0, r"^iperf \d+\.\d"),
    "sockperf --version": (0, r"^sockperf, version \d+\.\d"),
    "xz --version": (0, r"^xz \(XZ Utils\) \d+\.\d"),
    "pixz -h": (2, r"^pixz: Parallel Indexing XZ compression"),
    "openssl version": (0, r"^OpenSSL \d+\.\d"),
    "busybox": (0, r"^BusyBox v\d+\.\d"),
    "python3 --version": (0, r"^Python 3\.\d"),
    "test -x /usr/bin/hpcc": (0, "^$"),
}
"""Command → its exit status, and what it says then."""


@pytest.fixture(scope="module")
def root(default_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's files, mounted read-only."""
    where = tmp_path_factory.mktemp("default")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(default_image.path), os.fsencode(where), b"erofs", 1, b"") != 0:
        subprocess.run(
            ["mount", "-t", "erofs", "-o", "loop,ro", default_image.path, where], check=True
        )
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.root
def test_programs_of_the_workloads_run(root: Path, default_image: Image) -> None:
    """Every program the workloads need starts inside the image, and says its version."""
    script = "\n".join(
        [
            # nginx -t opens its pid file and log: they are in tmpfs in every arm
            "set -e",
            'mount -t tmpfs none "$1/run"',
            'mount -t tmpfs none "$1/var/lib/nginx"',
            'mount --bind /dev "$1/dev"',
            "set +e",
            *(f'chroot "$1" {command} 2>&1; echo "{STATUS}$?"' for command in VERSIONS),
        ]
    )
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", script, "sh", root],
        env=dict(default_image.config.env),
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.split(rf"{STATUS}(\d+)\n", done.stdout)
    assert said.pop() == "" and len(said) == 2 * len(VERSIONS), done.stdout
    for (command, (status, version)), text, ended in zip(
        VERSIONS.items(), said[::2], said[1::2], strict=True
    ):
        assert int(ended) == status, f"{command}: {text}"
        assert re.search(version, text), f"{command}: {text}"


@pytest.mark.root
def test_nothing_of_this_host_is_inside(root: Path) -> None:
    """No apt source, no mirror, no resolver, no host name, no build leftovers, no devices."""
    assert not [path for path in (root / "etc/apt").rglob("*") if not path.is_dir()]
    assert (root / "etc/hostname").read_text() == "hvct\n"
    assert (root / "etc/resolv.conf").read_text() == ""
    assert (root / "etc/machine-id").read_text() == ""
    for name in ("dev", "run", "tmp", "var/cache", "var/lib/apt", "etc/dpkg/dpkg.cfg.d"):
        assert os.listdir(root / name) == [], name
    assert not [path for path in (root / "var/log").rglob("*") if path.is_file()]
    host = socket.gethostname().encode()
    mirrors = _mirrors()
    for path in walk(root / "etc"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            for mirror in mirrors:
                assert mirror not in data, path
            if len(host) > 8:
                assert host not in data, path
            assert b"hvct/tmp" not in data, path


def _mirrors() -> set[bytes]:
    found = set()
    for path in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if path.is_file():
            found.update(word.encode() for word in path.read_text().split() if "://" in word)
    return found


@pytest.mark.root
def test_bytecode_is_not_stale(root: Path) -> None:
    """Python's bytecode carries its source's time, so it is not compiled again at each start."""
    (library,) = (root / "usr/lib").glob("python3.*")
    (compiled,) = (library / "__pycache__").glob("os.cpython-*.pyc")
    header = compiled.read_bytes()[:16]
    assert int.from_bytes(header[4:8], "little") == 0, "checked by time"
    assert int.from_bytes(header[8:12], "little") == int((library / "os.py").stat().st_mtime)


@pytest.mark.root
def test_packages_are_listed(default_image: Image) -> None:
    """The image says which packages in which versions it is made of."""
    names = {line.split(" ")[0] for line in default_image.packages}
    assert set(debian.PACKAGES) <= names
    assert all(len(line.split(" ")) == 2 for line in default_image.packages)
    assert default_image.config.env and default_image.architecture


@pytest.mark.root
def test_two_builds_are_the_same_bytes(
    default_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built again in another cache from the same packages, it is the same volume."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[tuple[str, float | None]] = []
    again = store.build_default(lambda what, fraction: told.append((what, fraction)))
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert len(told) > 3 and fractions == sorted(fractions)
    if again.packages != default_image.packages:
        pytest.skip("the mirror has newer packages than the image in the cache")
    assert again.digest == default_image.digest
    assert list((tmp_path / "hvct" / "tmp").iterdir()) == []


def test_only_the_distribution_itself_is_a_source(tmp_path: Path) -> None:
    """Third-party archives, other suites and switched-off sources are left out."""
    apt = tmp_path / "apt"
    (apt / "sources.list.d").mkdir(parents=True)
    ours = "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main contrib"
    updates = "deb http://mirror.example/debian bookworm-updates main # comment"
    others = (
        "deb http://other.example/tool bookworm stable",
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian bookworm-backports main",
        "deb-src http://mirror.example/debian bookworm main",
        "# deb http://mirror.example/debian bookworm main",
    )
    (apt / "sources.list").write_text("\n".join([*others, ours, updates]))
    good = STANZA.format(suites="bookworm bookworm-security", components="main")
    bad = (
        STANZA.format(suites="nodistro", components="main"),
        STANZA.format(suites="bookworm", components="stable"),
        STANZA.format(suites="bookworm trixie", components="main"),
        "Enabled: no\n" + good,
        "# " + good.rstrip().replace("\n", "\n# ") + "\n",
    )
    (apt / "sources.list.d" / "debian.sources").write_text("\n".join([*bad, good]))
    (apt / "sources.list.d" / "ignored.save").write_text(ours)
    space = tmp_path / "space"
    space.mkdir()
    files = debian.host_sources(apt, "bookworm", space)
    assert [path.read_text().strip() for path in files] == [f"{ours}\n{updates}", good.strip()]
    with pytest.raises(HostCannot, match="suite sid"):
        debian.host_sources(apt, "sid", space)


def test_host_without_the_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without apt or mmdebstrap the error says what is missing and what to use instead."""
    if os.geteuid() != 0:
        with pytest.raises(HostCannot, match="root"):
            debian.check_host("this", "import one")
        return
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostCannot) as caught:
        debian.check_host("this", "import one")
    assert "import" in caught.value.hint
    (tmp_path / "apt-get").symlink_to("/bin/true")
    with pytest.raises(HostCannot, match="mmdebstrap is not installed"):
        debian.check_host("this", "import one")


@pytest.mark.root
def test_mirror_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the build ends in one line with apt's reason, and leaves nothing."""
    code = (
        "from bench.image import store\n"
        "from bench.errors import HvctError\n"
        "try: store.build_default()\n"
        "except HvctError as error: print(error.message, '|', error.hint)"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code],
        cwd=Path(debian.__file__).parents[2], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "could not be built" in done.stdout and "apt-get update" in done.stdout, done
    assert len(done.stdout.strip().splitlines()) == 1
    assert list((tmp_path / "hvct" / "tmp").iterdir()) == []
    assert list((tmp_path / "hvct" / "images").iterdir()) == []

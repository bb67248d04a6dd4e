"""Dockerfiles through buildah, with no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest

from bench.errors import BadInput, HostCannot
from bench.image import blobs, dockerfile, export, index, store

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("buildah"), reason="buildah is not installed"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no registry that could be reached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own cache"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    return tmp_path / "own cache" / "hvct"


def written(folder: Path, text: str, **files: str) -> Path:
    """A folder with a Dockerfile, and others."""
    folder.mkdir()
    for name, content in {"Dockerfile": text, **files}.items():
        (folder / name).write_text(content)
    return folder


def contents(name: str, path: str) -> str:
    """A file of an image of the cache, out of its volume."""
    volume = store.resolve(name).path
    shown = subprocess.run(
        ["unshare", "-m", "sh", "-ec", 'mount -t erofs -o loop,ro "$0" /mnt; cat "/mnt$1"',
         volume, path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return shown.stdout


def test_scratch_and_settings(tmp_path: Path) -> None:
    """From nothing: what the Dockerfile says is what the image says, its health check too."""
    text = """FROM scratch
COPY one /folder/two
ENV A="b c" D=e
USER 12:34
WORKDIR /folder
VOLUME /data
EXPOSE 80/tcp
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=2s --timeout=5s CMD /check it
ENTRYPOINT ["/folder/two", "x"]
CMD ["y"]
"""
    folder = written(tmp_path / "My App", text, one="content")
    image = store.build_folder(folder)
    config = image.config
    assert image.name == "my-app" and config.env[1:] == (("A", "b c"), ("D", "e"))
    assert (config.ids.uid, config.ids.gid, config.workdir) == (12, 34, "/folder")
    assert (config.volumes, config.exposed_ports) == (("/data",), ("80/tcp",))
    assert (config.stop_signal, config.entrypoint, config.cmd) == (
        "SIGQUIT", ("/folder/two", "x"), ("y",),
    )  # fmt: skip
    check = config.healthcheck
    assert check is not None and check.command == ("/bin/sh", "-c", "/check it")
    assert (check.interval_s, check.timeout_s) == (2.0, 5.0)
    assert contents("my-app", "/folder/two") == "content"
    assert export.configuration(image)["Healthcheck"]["Test"] == ["CMD", *check.command]


def test_bases_come_from_the_cache(tmp_path: Path, own_cache: Path) -> None:
    """Built-in and built images are bases, by ARG and for COPY --from; a RUN runs."""
    text = """ARG BASE=nope
FROM ${BASE} AS first
RUN echo "made by $(id -u)" >/made
FROM busybox
ARG WHAT
COPY --from=first /made /copied
COPY --from=mine:1 /file /other
RUN echo "$WHAT" >/what; ln -s /etc/passwd /link
"""
    store.build_folder(written(tmp_path / "m", "FROM scratch\nCOPY f /file\n", f="mine"), "mine:1")
    folder = written(tmp_path / "app", text)
    store.build_folder(folder, "app", arguments=["BASE=busybox", "WHAT=a = b"], offline=True)
    read = [contents("app", path) for path in ("/copied", "/other", "/what")]
    assert read == ["made by 0\n", "mine", "a = b\n"]
    assert list((own_cache / "tmp").iterdir()) == []
    assert "own cache" not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("FROM a\nFROM b AS c\nFROM c\n", {}, ["a", "b"]),
        ("ARG X=a:1\nFROM --platform=linux/amd64 $X\n", {}, ["a:1"]),
        ("ARG X=a\nFROM ${X}\n", {"X": "b"}, ["b"]),
        ("FROM ${X:-c}\nCOPY --from=d /e /f\nCOPY --from=0 / /\n", {}, ["c", "d"]),
        ("# FROM no\nfrom \\\n  a\nFROM scratch\nRUN FROM x\n", {}, ["a"]),
    ],
)
def test_what_a_dockerfile_builds_on(
    text: str, arguments: dict[str, str], expected: list[str]
) -> None:
    """Stages and scratch are no images; ARGs have their defaults unless they are given."""
    assert list(dockerfile.bases(text, arguments)) == expected


def test_what_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails, a base that is nowhere, no Dockerfile: told, and nothing stays."""
    failing = written(tmp_path / "f", "FROM busybox\nRUN echo this is why >&2; exit 3\n")
    with pytest.raises(BadInput, match="cannot be built") as caught:
        store.build_folder(failing)
    assert "exit status 3" in caught.value.message and "\n" not in caught.value.message
    nowhere = written(tmp_path / "n", "FROM registry.invalid/no/such:1\n")
    with pytest.raises(BadInput, match="cannot be built"):
        store.build_folder(nowhere, offline=True)  # else buildah tries for six seconds
    with pytest.raises(BadInput, match="has no Dockerfile"):
        store.build_folder(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        store.build_folder(tmp_path / "none")
    with pytest.raises(BadInput, match="no NAME=VALUE"):
        store.build_folder(failing, arguments=["x"])
    with pytest.raises(BadInput, match="built-in"):
        store.build_folder(failing, "default")
    assert [entry.image.name for entry in index.entries()] == ["busybox"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostCannot, match="buildah is not installed"):
        store.build_folder(failing)


def test_a_killed_build_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    """However it ends, what a RUN started is gone, and the next build sweeps its files."""
    text = "FROM busybox\nRUN touch /began; exec sleep 4567\n"
    folder = written(tmp_path / "k", text)
    store.prepare("busybox")
    argv = [sys.executable, "-m", "bench.cli", "image", "build", folder]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((own_cache / "tmp").rglob("began")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while _sleeping():
        assert time.monotonic() < deadline, "the RUN outlived its build"
        time.sleep(0.05)
    store.build_folder(written(tmp_path / "next", "FROM scratch\nCOPY f /f\n", f=""))
    assert list((own_cache / "tmp").iterdir()) == []


def _sleeping() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"sleep\x004567" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_the_command(tmp_path: Path) -> None:
    """``hvct image build DIR -t NAME``, its errors in two lines, the image run at once."""
    folder = written(tmp_path / "a b", 'FROM busybox\nCMD ["echo", "it", "runs"]\n')
    env = dict(os.environ)
    assert faults.hvct("image", "build", folder, "-t", "it:1", env=env).code == 0
    assert faults.hvct("run", "it:1", env=env).out == "it runs\n"
    faults.hvct("image", "build", tmp_path / "none", env=env).says(2, "is no folder")
    faults.hvct("image", "build", "busybox", "-t", "x", env=env).says(2, "built-in")
    assert blobs.complete(str(store.inspect("it:1")["recipe"]))


def test_a_built_in_image_is_the_same_layer_each_time(own_cache: Path, tmp_path: Path) -> None:
    """Packing twice gives the same manifest, and links, owners and modes are in it."""
    store.prepare("busybox")
    entry = index.load("busybox")
    assert entry is not None
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export.layout_of(entry, tmp_path / name, index.silent)
        digests.append({path.name for path in (own_cache / "blobs/sha256").iterdir()})
    assert digests[0] == digests[1] and len(digests[0]) == 3

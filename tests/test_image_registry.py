"""Images to and from registries: by tag and digest, cut short, offline, moved, damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from registries import Registry, put, serving
from test_image_oci import Layout, entry, folder, layer, layout_of

from bench.command import run
from bench.errors import BadInput, HostCannot
from bench.image import blobs, index, remote, store
from bench.image.index import host_architecture
from bench.image.remote import Access, digest_of
from bench.model import Image

pytestmark = pytest.mark.root

OPEN = Access(tls_verify=False)
OTHER = "arm64" if host_architecture() != "arm64" else "amd64"
CONFIG = {
    "Entrypoint": ["/bin/app"],
    "Cmd": ["--serve"],
    "User": "app",
    "StopSignal": "SIGINT",
    "ExposedPorts": {"8080/tcp": {}},
    "Volumes": {"/data/deep": {}, "/etc": {}},
    "Healthcheck": {"Test": ["CMD-SHELL", "app --ok"], "Interval": 200_000_000},
}
PASSWD = entry("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:70:70::/:/bin/sh\n")
BASE = layer(folder("bin"), entry("bin/app", b"#!/bin/true\n", mode=0o755), folder("etc"), PASSWD)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An open registry; every test has names of its own in it."""
    with serving(tmp_path_factory.mktemp("open registry") / "r") as made:
        yield made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own cache"))
    return tmp_path / "own cache" / "hvct"


def kept() -> set[str]:
    """The digests in the blob cache."""
    return {f"sha256:{path.name}" for path in (blobs.folder() / "sha256").iterdir()}


def pulled(text: str, **options: Any) -> Image:
    """The image, of which there was nothing to tell."""
    image, note = store.pull(text, OPEN, **options)
    assert note == ""
    return image


def noise(size: int) -> bytes:
    """Bytes that no compression makes smaller."""
    return os.urandom(size)


def test_a_built_in_image_goes_round(registry: Registry) -> None:
    """What is pushed and pulled again is the same volume, run the same way, by tag and digest."""
    ours = store.prepare("busybox")
    where, digest = store.push("busybox", f"{registry.host}/team/bb:1", OPEN)
    assert where == f"{registry.host}/team/bb:1"
    assert store.push("busybox", f"{registry.host}/team/bb:2", OPEN)[1] == digest
    image = pulled(f"{registry.host}/team/bb:1")
    assert (image.digest, image.config) == (ours.digest, ours.config)
    assert image.name == f"{registry.host}/team/bb:1"
    image, note = store.pull(f"{registry.host}/team/bb@{digest}", OPEN)
    assert (image.digest, note) == (ours.digest, "in the cache already")


def test_what_the_image_says_arrives(registry: Registry, tmp_path: Path) -> None:
    """User, command, ports, stop signal, health check; missing volumes are folders of root."""
    put(layout_of(tmp_path / "l", BASE, **CONFIG), registry, "says:1")
    image = pulled(f"{registry.host}/says:1", name="says")
    config = image.config
    assert image.name == "says" and config.ids.uid == 70 and config.stop_signal == "SIGINT"
    assert (*config.entrypoint, *config.cmd) == ("/bin/app", "--serve")
    assert config.exposed_ports == ("8080/tcp",) and config.volumes == ("/data/deep", "/etc")
    assert config.healthcheck is not None
    assert config.healthcheck.command == ("/bin/sh", "-c", "app --ok")
    assert (config.healthcheck.interval_s, config.healthcheck.timeout_s) == (0.2, 30.0)
    assert index.load("says").image == image  # type: ignore[union-attr]
    listing = subprocess.run(
        ["dump.erofs", "--path=/data/deep", image.path], capture_output=True, check=True, text=True
    ).stdout
    assert "0755" in listing and "Uid: 0" in listing


def test_a_docker_image_keeps_its_digest_and_health_check(
    registry: Registry, tmp_path: Path
) -> None:
    """A Docker manifest is kept as it is: pulled, pushed elsewhere, it has the same digest."""
    put(layout_of(tmp_path / "l", BASE, **CONFIG), registry, "docker:1", "--format=v2s2")
    image = pulled(f"{registry.host}/docker:1")
    assert image.config.healthcheck is not None
    first = store.inspect(image.name)["remote_digest"]
    _, digest = store.push(image.name, f"{registry.host}/else/where:9", OPEN)
    assert digest == first == store.inspect(image.name)["recipe"]
    manifest = json.loads(blobs.path(digest).read_bytes())
    assert "docker" in manifest["mediaType"]


def test_zstd_layers(registry: Registry, tmp_path: Path) -> None:
    """Layers that umoci cannot read are recompressed for it, and kept as they came."""
    plain = store.import_archive(layout_of(tmp_path / "plain", BASE, **CONFIG), "plain")
    made = Layout(tmp_path / "zstd")
    manifest = json.loads(
        (made.path / "blobs" / _place(made.image(BASE, config=CONFIG))).read_text()
    )
    packed = run(["zstd", "-q", "-c"], input_bytes=BASE)
    kind = "application/vnd.oci.image"
    manifest["layers"] = [made.blob(packed, f"{kind}.layer.v1.tar+zstd")]
    entry = made.blob(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    put(made.write(entry), registry, "zstd:1")
    image = pulled(f"{registry.host}/zstd:1")
    assert (image.digest, image.config) == (plain.digest, plain.config)
    assert blobs.path(digest_of(packed)).read_bytes() == packed
    _, digest = store.push(image.name, f"{registry.host}/zstd/again:1", OPEN)
    assert digest == entry["digest"]


def test_indexes_and_other_architectures(registry: Registry, tmp_path: Path) -> None:
    """Of an index our own image is taken; where there is none, it is said what there is."""
    both, others = Layout(tmp_path / "both"), Layout(tmp_path / "others")
    ours = both.image(BASE, config=CONFIG)
    foreign = [both.image(BASE, architecture=OTHER), both.image(BASE, architecture="s390x")]
    kind = "application/vnd.oci.image.index.v1+json"

    def nested(made: Layout, *entries: dict[str, Any]) -> Path:
        document = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
        return made.write(made.blob(document.encode(), kind))

    put(nested(both, *foreign, ours), registry, "multi:1", "--all")
    assert pulled(f"{registry.host}/multi:1").config.entrypoint == ("/bin/app",)
    others.image(BASE, architecture=OTHER)
    foreign = [others.image(BASE, architecture=OTHER), others.image(BASE, architecture="s390x")]
    put(nested(others, *foreign), registry, "others:1", "--all")
    with pytest.raises(BadInput, match=f"no image for {host_architecture()}, only for .*s390x"):
        store.pull(f"{registry.host}/others:1", OPEN)
    single = Layout(tmp_path / "single")
    big = layer(entry("big", noise(1 << 20)))
    put(single.write(single.image(big, architecture=OTHER)), registry, "single:1")
    before = kept()
    with pytest.raises(BadInput, match=f"is an image for {OTHER}, not for"):
        store.pull(f"{registry.host}/single:1", OPEN)
    assert kept() == before, "nothing of it was fetched"


def test_a_pull_that_was_cut_short_goes_on(registry: Registry, tmp_path: Path) -> None:
    """Layers that have arrived are not fetched again, and progress counts bytes."""
    layers = [BASE, layer(entry("a", noise(200_000))), layer(entry("b", noise(300_000)))]
    made = Layout(tmp_path / "l")
    put(made.write(made.image(*layers)), registry, "cut:1")
    manifest = remote.resolve(store.reference.parse(f"{registry.host}/cut:1"), OPEN, tmp_path)
    digests = list(blobs.layers_of(json.loads(manifest.manifest), ""))
    lost = registry.blob(digests[2])
    lost.rename(lost.with_name("away"))
    with pytest.raises((BadInput, HostCannot)):
        store.pull(f"{registry.host}/cut:1", OPEN)
    lost.with_name("away").rename(lost)
    assert set(digests[:2]) <= kept() and index.entries() == []
    blobs.path(digests[0]).write_bytes(b"damaged on this disk")
    counts = [registry.fetched(digest) for digest in digests]
    told: list[str] = []
    pulled(f"{registry.host}/cut:1", progress=lambda what, _: told.append(what))
    assert [registry.fetched(digest) for digest in digests] == [
        counts[0] + 1,  # did not fit its digest any more
        counts[1],
        counts[2] + 1,
    ]
    assert told[0] == f"asking {registry.host}"


def test_without_a_network(registry: Registry, tmp_path: Path) -> None:
    """What is cached works: a digest silently, a tag with a word about it; the rest is told."""
    put(layout_of(tmp_path / "l", BASE), registry, "off:1")
    name = f"{registry.host}/off:1"
    image = pulled(name)
    digest = store.inspect(name)["remote_digest"]
    assert store.pull(name, OPEN)[1] == "up to date"
    asked = registry.log.count("/off/")
    assert store.pull(name, OPEN, offline=True)[0] == image
    assert store.prepare(name) == store.ensure(name) == image
    assert registry.log.count("/off/") == asked, "nobody is asked for what is in the cache"
    with registry.stopped():
        again, note = store.pull(name, OPEN)
        assert again == image
        assert "cannot be reached: connection refused; taking the one pulled on 20" in note
        assert store.pull(f"{registry.host}/off@{digest}", OPEN)[0] == image
        with pytest.raises(HostCannot, match="cannot be reached"):
            store.pull(f"{registry.host}/off:2", OPEN)
    with pytest.raises(HostCannot, match="not in the cache"):
        store.pull(f"{registry.host}/off:2", OPEN, offline=True)
    with pytest.raises(BadInput, match="has no image"):
        store.pull(f"{registry.host}/off:2", OPEN)
    assert store.known_names() == [name, "busybox", "default"]


def test_a_tag_that_moved_and_a_removed_image(registry: Registry, tmp_path: Path) -> None:
    """The new image takes the name; shared layers are kept, all others go, at once."""
    second, third = (layer(entry("x", noise(1000))) for _ in range(2))
    put(layout_of(tmp_path / "l1", BASE, second), registry, "moved:1")
    name = f"{registry.host}/moved:1"
    old = pulled(name)
    was = kept()
    shared = next(iter(blobs.layers_of(_manifest(name), "")))
    count = registry.fetched(shared)
    put(layout_of(tmp_path / "l2", BASE, third), registry, "moved:1")
    new = pulled(name)
    assert new.digest != old.digest and registry.fetched(shared) == count
    assert was & kept() == {shared}
    assert not old.path.exists()
    store.remove(name)
    assert kept() == set() and index.entries() == []


def _place(entry: dict[str, Any]) -> str:
    return str(entry["digest"]).replace(":", "/")


def _manifest(name: str) -> dict[str, Any]:
    found = store.find(name)
    assert found is not None
    manifest: dict[str, Any] = json.loads(blobs.path(found.recipe).read_bytes())
    return manifest


def test_damage_and_size(registry: Registry, tmp_path: Path) -> None:
    """A layer that does not fit its digest is refused, as is one that is too large."""
    made = layout_of(tmp_path / "l", BASE, layer(entry("x", noise(5000))))
    put(made, registry, "bad:1")
    name = f"{registry.host}/bad:1"
    with pytest.raises(BadInput, match="unpacks to more than"):
        store.pull(name, OPEN, max_bytes=1000)
    found = remote.resolve(store.reference.parse(name), OPEN, tmp_path)
    digest = list(blobs.layers_of(json.loads(found.manifest), ""))[1]
    data = bytearray(registry.blob(digest).read_bytes())
    data[100] ^= 1
    registry.blob(digest).write_bytes(data)
    with pytest.raises(BadInput, match=r"[Dd]igest"):
        store.pull(name, OPEN)
    assert digest not in kept() and index.entries() == []


class Liar(BaseHTTPRequestHandler):
    """A registry that answers every question for a manifest or blob with the same bytes."""

    answers: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        """Answer by the kind of question alone."""
        kind = next((key for key in self.answers if f"/{key}" in self.path), "")
        body = self.answers.get(kind, b"{}")
        self.send_response(200)
        kind = "image.index.v1" if b'"manifests"' in body else "image.manifest.v1"
        self.send_header("Content-Type", f"application/vnd.oci.{kind}+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_registry_that_lies() -> None:
    """A manifest, one of an index or a configuration with another digest is refused."""
    kind = "application/vnd.oci.image"
    false = "sha256:" + "0a" * 32
    part = {"mediaType": f"{kind}.config.v1+json", "digest": false, "size": 2}
    manifest = json.dumps({"schemaVersion": 2, "config": part, "layers": []}).encode()
    platform = {"architecture": host_architecture(), "os": "linux"}
    child = {"mediaType": f"{kind}.manifest.v1+json", "digest": false, "size": 9}
    document = {"schemaVersion": 2, "manifests": [{**child, "platform": platform}]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            name = f"127.0.0.1:{server.server_port}/lies"
            for answers, wanted in (
                ({"manifests": manifest}, f"{name}@{false}"),  # not that digest
                ({"manifests": manifest, "blobs": b"{}"}, f"{name}:1"),  # a false configuration
                (
                    {"manifests/1": json.dumps(document).encode(), "manifests/sha": manifest},
                    f"{name}:1",  # a false manifest in the index
                ),
            ):
                Liar.answers = answers
                with pytest.raises(BadInput, match=r"[Dd]igest|does not match"):
                    store.pull(wanted, OPEN)
        finally:
            server.shutdown()
            thread.join()
    assert index.entries() == [] and kept() == set()


def test_imports_are_pushed_as_they_came(registry: Registry, tmp_path: Path) -> None:
    """An imported image has its health check where it is pushed, and no layer is made anew."""
    image = store.import_archive(layout_of(tmp_path / "l", BASE, **CONFIG), "imported")
    _, digest = store.push("imported", f"{registry.host}/imported:1", OPEN)
    assert digest == store.inspect("imported")["recipe"]
    again = pulled(f"{registry.host}/imported:1")
    assert again == dataclasses.replace(image, name=again.name, source=again.source)
    with pytest.raises(BadInput, match="not to a digest"):
        store.push("imported", f"{registry.host}/imported@{digest}", OPEN)
    with pytest.raises(BadInput, match="no image 'nope'"):
        store.push("nope", f"{registry.host}/x", OPEN)


def test_progress_counts_bytes(tmp_path: Path) -> None:
    """What has come of a layer counts while it comes."""
    told: list[tuple[str, float | None]] = []
    layers = {blobs.put(b"x" * 1_000_000): 1_000_000, "sha256:" + "0" * 64: 3_000_000}
    (tmp_path / "oci-put-blob1").write_bytes(b"y" * 1_000_000)
    with remote._watching(layers, tmp_path, lambda *one: told.append(one)):
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
    assert told[0] == ("pulling · 2.0 of 4.0 MB", 0.5)


def test_an_image_imported_anew_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    """Parts of an image whose name means another now are gone."""
    store.import_archive(layout_of(tmp_path / "a", layer(entry("a", noise(9)))), "same")
    was = kept()
    store.import_archive(layout_of(tmp_path / "b", layer(entry("b", noise(9)))), "same")
    assert was and not was & kept()


def test_a_path_is_an_image_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``hvct run`` and ``compare --image`` take the path of a layout, and tell a wrong one."""
    made = layout_of(tmp_path / "my app", BASE, **CONFIG)
    assert store.ensure(str(made)).name == "my-app" == store.ensure("my-app").name
    monkeypatch.chdir(tmp_path)
    assert store.is_path("my app") and store.is_path("./none") and not store.is_path("my-app")
    with pytest.raises(BadInput, match="none"):
        store.ensure("./none")
    with pytest.raises(BadInput, match="no image 'none'") as caught:
        store.ensure("none")
    assert "hvct image pull none" in caught.value.hint


def test_plain_http_is_asked_for(registry: Registry) -> None:
    """A registry without TLS is refused unless that was allowed."""
    with pytest.raises(BadInput, match="speaks plain HTTP") as caught:
        store.pull(f"{registry.host}/any:1")
    assert "--tls-verify=false" in caught.value.hint

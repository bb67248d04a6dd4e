"""Registries, through skopeo: what a reference means there, fetching its parts, pushing, logins.

The index or manifest is read first and our platform chosen here, so that an image for other
machines is refused before anything large is fetched. Manifest and configuration are kept as
the registry has them, byte for byte: the digests stay true, and nothing is lost in between
(converting a Docker image to OCI drops its HEALTHCHECK).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.command import run
from bench.errors import BadInput, HostCannot, HvctError
from bench.image import blobs
from bench.image.archive import LARGEST_JSON_BYTES
from bench.image.index import Progress, host_architecture
from bench.image.members import too_large
from bench.image.reference import Reference

TIMEOUT_S = 7200.0
INDEXES = ("manifest.list.v2", "image.index.v1")
UNREACHABLE = re.compile(
    r"no such host|connection refused|network is unreachable|no route to host|i/o timeout|"
    r"deadline exceeded|connection reset|server misbehaving|temporary failure|"
    r"TLS handshake timeout|Internal Server Error|Service Unavailable|Bad Gateway|\bEOF\b"
)

REFUSED = re.compile(
    r"unauthorized|authentication required|invalid username|access.* denied|^denied|: denied|"
    r"status(?: code)?:? 40[13]",
    re.IGNORECASE,
)


class Unreachable(HostCannot):
    """The registry did not answer: nothing is known about the image."""


@dataclass(frozen=True)
class Access:
    """How registries are reached.

    Attributes:
        authfile: logins, as skopeo and docker keep them; None for their own default.
        username, password: of this one access; they take the place of a login.
        tls_verify: False also allows plain HTTP.
        cert_dir: folder with ``ca.crt`` and, for a client's certificate, ``*.cert``, ``*.key``.
    """

    authfile: Path | None = None
    username: str = ""
    password: str = ""
    tls_verify: bool = True
    cert_dir: Path | None = None

    @contextmanager
    def options(self, reference: Reference, space: Path, side: str = "") -> Iterator[list[str]]:
        """Skopeo's options for one registry; a password is never among them (ps shows those)."""
        words = [] if self.tls_verify else [f"--{side}tls-verify=false"]
        if self.cert_dir is not None:
            if not self.cert_dir.is_dir():
                raise BadInput(
                    f"--cert-dir {self.cert_dir} is no folder", "name the folder with ca.crt in it"
                )
            words.append(f"--{side}cert-dir={self.cert_dir}")
        own = space / "auth.json"
        if self.username:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            own.touch(mode=0o600)
            own.write_text(json.dumps({"auths": {reference.domain: {"auth": pair}}}))
            words.append(f"--{side}authfile={own}")
        elif self.authfile is not None:
            if not self.authfile.is_file():
                raise BadInput(
                    f"--authfile {self.authfile} is no file", "hvct image login --help makes one"
                )
            words.append(f"--{side}authfile={self.authfile}")
        try:
            yield words
        finally:
            own.unlink(missing_ok=True)


@dataclass(frozen=True)
class Resolved:
    """What a reference means at this moment, for our platform.

    Attributes:
        digest: of what the reference names, an index or a manifest.
        manifest: the manifest of our platform, as bytes; `config` likewise.
    """

    reference: Reference
    digest: str
    manifest: bytes
    config: bytes

    @property
    def manifest_digest(self) -> str:
        """``sha256:…`` of the manifest."""
        return digest_of(self.manifest)


def digest_of(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def skopeo(
    words: Sequence[str | Path],
    reference: Reference,
    *,
    timeout_s: float = 120,
    input_bytes: bytes | None = None,
    action: str = "pull",
) -> bytes:
    """Run skopeo; what it says of the registry becomes one line and what to do.

    Args:
        action: of ``hvct image``, for what to do.

    Raises:
        Unreachable: the registry does not answer.
        BadInput: it does, and refuses.
    """
    try:
        hint = "install the package skopeo"
        return run(["skopeo", *words], timeout_s=timeout_s, input_bytes=input_bytes, hint=hint)
    except HostCannot:
        raise
    except HvctError as error:
        raise _explained(error.message, reference, action) from error


def _explained(said: str, reference: Reference, action: str) -> HvctError:
    found = re.findall(r'msg="((?:[^"\\]|\\.)*)"', said) or [said]
    reason = str(found[-1]).replace('\\"', '"')
    host = reference.domain
    name = reference.full if reference.path else host
    # An image may be called anything, and a digest may hold any number.
    words = re.sub(rf"{re.escape(reference.repository)}\S*|sha256:[0-9a-f]+", "", reason)
    # hvct compare pulls by itself and has none of these options: that pull is told whole.
    line = f"hvct image pull {name}" if action == "pull" else f"hvct image {action} with"
    if "HTTP response to HTTPS client" in words:
        return BadInput(f"{host} speaks plain HTTP", f"allow that: {line} --tls-verify=false")
    if re.search(r"x509|certificate", words):
        return BadInput(
            f"the certificate of {host} is not trusted: {reason.rpartition(': ')[2]}",
            f"with its CA in a folder as ca.crt: {line} --cert-dir FOLDER",
        )
    if REFUSED.search(words):
        return BadInput(
            f"{host} does not give access with this login, or without one: {name}",
            f"hvct image login {host}, or --username USER --password-stdin",
        )
    if re.search(r"(manifest|name|blob) unknown|not found", words, re.IGNORECASE):
        return BadInput(f"{host} has no image {name}", "check its name and tag")
    if "toomanyrequests" in words:
        return Unreachable(f"{host} allows no more {action} for now", "wait, or log in to it")
    if UNREACHABLE.search(words):
        instead = "import the image from an archive: hvct image import --help"
        return Unreachable(
            f"{host} cannot be reached: {reason.rpartition(': ')[2]}",
            f"check the network, or {instead if action == 'pull' else 'the name of the registry'}",
        )
    return BadInput(f"{name}: {reason}", "HVCT_DEBUG=1 shows what was tried")


def resolve(reference: Reference, access: Access, space: Path) -> Resolved:
    """Ask the registry what a reference means for our platform; skopeo checks every digest.

    Raises:
        Unreachable: it does not answer.
        BadInput: there is no such image, none for this host, or it may not be read.
    """
    with access.options(reference, space) as options:

        def inspect(which: Reference, *more: str) -> bytes:
            words = ("inspect", *more, "--raw", *options, f"docker://{which.full}")
            data = skopeo(("--insecure-policy", *words), which)
            if len(data) > LARGEST_JSON_BYTES:
                raise BadInput(f"the manifest of {which.full} is too large", "build it again")
            return data

        raw = inspect(reference)
        digest, document = digest_of(raw), read(raw, reference)
        chosen, manifest = reference.at(digest), raw
        if any(kind in str(document.get("mediaType")) for kind in INDEXES) or (
            "manifests" in document and "layers" not in document
        ):
            chosen = reference.at(choose(document, reference))
            manifest = inspect(chosen)
            document = read(manifest, chosen)
        if not isinstance(document.get("config"), dict):
            raise BadInput(
                f"{reference.full} is no container image, or in a format from before 2016",
                "push it again with a newer tool",
            )
        config = inspect(chosen, "--config")
    return Resolved(reference, digest, manifest, config)


def read(data: bytes, reference: Reference) -> dict[str, Any]:
    """A JSON object of a registry.

    Raises:
        BadInput: it is none.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{reference.full} is malformed", "push it again") from error
    if not isinstance(document, dict):
        raise BadInput(f"{reference.full} is malformed", "push it again")
    return document


def choose(document: dict[str, Any], reference: Reference) -> str:
    """The digest of our platform's manifest in an index.

    Raises:
        BadInput: there is none; the message names those there are.
    """
    ours, offered = host_architecture(), set()
    entries = document.get("manifests")
    for entry in entries if isinstance(entries, list) else ():
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(platform, dict):
            continue
        system, architecture = str(platform.get("os")), str(platform.get("architecture"))
        digest = str(entry.get("digest"))
        if (system, architecture) == ("linux", ours) and re.fullmatch(
            r"sha256:[0-9a-f]{64}", digest
        ):
            return digest
        if "unknown" not in (system, architecture):  # attestations are listed as such
            offered.add(architecture if system == "linux" else f"{system}/{architecture}")
    raise BadInput(
        f"{reference.full} has no image for {ours}, only for "
        f"{', '.join(sorted(offered)) or 'nothing'}",
        f"take another tag, or get it for {ours}",
    )


def fetch(
    resolved: Resolved, access: Access, space: Path, progress: Progress, max_bytes: int
) -> None:
    """Bring every part of an image into the blob cache; what is there is not fetched again.

    Raises:
        Unreachable, BadInput: as `resolve`; a part may be damaged.
    """
    name = resolved.reference.at(resolved.manifest_digest)
    layers = blobs.layers_of(read(resolved.manifest, name), name.full)
    total = sum(layers.values())
    if total > max_bytes:
        raise too_large(name.full, max_bytes)
    blobs.drop_damaged(layers)
    target = space / "fetched"
    with (
        _watching(layers, target, progress),
        access.options(name, space, "src-") as options,
    ):
        temporary = space / "skopeo"
        temporary.mkdir(exist_ok=True)
        skopeo(
            (
                *("--insecure-policy", "--tmpdir", temporary, "copy", "--quiet"),
                *("--retry-times", "2", "--dest-oci-accept-uncompressed-layers"),
                *options,
                f"--dest-shared-blob-dir={blobs.folder()}",
                f"docker://{name.full}",
                f"oci:{target}:image",
            ),
            name,
            timeout_s=TIMEOUT_S,
        )
    missing = [digest for digest in layers if not blobs.path(digest).is_file()]
    if missing:
        raise HvctError(f"{name.full} came without its layer {missing[0][:19]}", "pull it again")
    blobs.put(resolved.config)
    blobs.put(resolved.manifest)


@contextmanager
def _watching(layers: dict[str, int], target: Path, progress: Progress) -> Iterator[None]:
    """Tell how many bytes have come, from the files as they grow."""
    done = threading.Event()
    total = sum(layers.values()) or 1

    def follow() -> None:
        while not done.wait(0.2):
            here = sum(size for digest, size in layers.items() if blobs.path(digest).is_file())
            for part in target.glob("oci-put-blob*"):
                try:
                    here += part.stat().st_size
                except OSError:  # it is complete now, and has another name
                    continue
            what = f"pulling · {here / 1e6:.1f} of {total / 1e6:.1f} MB"
            progress(what, min(0.99, here / total))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def login(registry: str, access: Access) -> None:
    """Check a login with the registry and keep it, as ``skopeo login`` does.

    Raises:
        Unreachable, BadInput: the registry does not answer, or refuses.
    """
    words = ["login", "--username", access.username, "--password-stdin"]
    words += [] if access.tls_verify else ["--tls-verify=false"]
    words += [] if access.cert_dir is None else [f"--cert-dir={access.cert_dir}"]
    words += [] if access.authfile is None else [f"--authfile={access.authfile}"]
    skopeo(
        [*words, registry],
        _registry(registry),
        input_bytes=access.password.encode(),
        action="login",
    )


def logout(registry: str, access: Access) -> None:
    """Forget a login.

    Raises:
        BadInput: there is none.
    """
    words = [] if access.authfile is None else [f"--authfile={access.authfile}"]
    skopeo(["logout", *words, registry], _registry(registry), action="logout")


def _registry(name: str) -> Reference:
    if not re.fullmatch(r"[A-Za-z0-9.\[\]:-]+", name) or name.startswith("-"):
        raise BadInput(f"{name[:60]!r} is no registry", "its name, and :PORT where it has one")
    return Reference(name, "", "", "")


def push(layout: Path, reference: Reference, access: Access, space: Path) -> str:
    """Copy the one image of a layout to a registry; returns its digest there.

    Raises:
        Unreachable, BadInput: the registry does not answer, or refuses.
    """
    if reference.digest:
        raise BadInput("an image is pushed to a tag, not to a digest", "give REGISTRY/NAME:TAG")
    told, temporary = space / "digest", space / "skopeo"
    temporary.mkdir(exist_ok=True)
    with access.options(reference, space, "dest-") as options:
        skopeo(
            (
                *("--insecure-policy", "--tmpdir", temporary, "copy", "--quiet"),
                *("--retry-times", "2", f"--digestfile={told}", *options),
                f"oci:{layout}",
                f"docker://{reference.full}",
            ),
            reference,
            timeout_s=TIMEOUT_S,
            action="push",
        )
    return told.read_text().strip()

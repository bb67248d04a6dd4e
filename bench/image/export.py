"""Images of the cache as OCI layouts: to be pushed, and to build on.

One that came from outside is kept as it came. A built-in one is made into one layer, the same
bytes each time.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.command import run
from bench.errors import HostCannot
from bench.image import blobs
from bench.image.erofs import sha256_file
from bench.image.index import Entry, Progress
from bench.image.oci import need_root
from bench.model import Image

TYPE = "application/vnd.oci.image"


def layout_of(entry: Entry, space: Path, progress: Progress) -> Path:
    """An OCI layout with the image in it, inside a workspace.

    Raises:
        HostCannot: not root, and it has to be made from its files.
        HvctError: it cannot be made.
    """
    if blobs.complete(entry.recipe):
        return blobs.layout(entry.recipe, space)
    progress(f"packing {entry.image.name}", None)
    return blobs.layout(_repack(entry.image, space), space)


def _repack(image: Image, space: Path) -> str:
    """Make manifest, configuration and one layer out of the volume; the manifest's digest."""
    need_root()
    packed = space / f"{image.uuid}.gz"
    # The mount is in this process's own namespace, and it dies with us.
    said = run(
        [
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(sys.executable, "-m", "bench.image.layer", image.path, packed),
        ],
        timeout_s=1800,
    )
    if not packed.is_file():
        raise HostCannot(
            f"{image.name} cannot be packed", "load the modules: modprobe -a erofs loop"
        )
    layer = sha256_file(packed)
    blobs.keep(packed, layer)
    made = datetime.fromtimestamp(image.newest_mtime, UTC).isoformat().replace("+00:00", "Z")
    settings = {
        "created": made,
        "architecture": image.architecture,
        "os": "linux",
        "config": configuration(image),
        "rootfs": {"type": "layers", "diff_ids": [said.decode().strip()]},
        "history": [{"created": made, "created_by": f"hvct: {image.source}"}],
    }
    config = json.dumps(settings, separators=(",", ":")).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{TYPE}.manifest.v1+json",
        "config": _descriptor("config.v1+json", blobs.put(config), len(config)),
        "layers": [_descriptor("layer.v1.tar+gzip", layer, packed.stat().st_size)],
    }
    return blobs.put(json.dumps(manifest, separators=(",", ":")).encode())


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{TYPE}.{kind}", "digest": digest, "size": size}


def configuration(image: Image) -> dict[str, Any]:
    """The ``config`` object of an OCI image configuration; the inverse of `config.parse`."""
    settings = image.config
    fields: dict[str, Any] = {
        "User": settings.user,
        "Env": [f"{name}={value}" for name, value in settings.env],
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.cmd),
        "WorkingDir": settings.workdir,
        "StopSignal": settings.stop_signal,
        "ExposedPorts": {port: {} for port in settings.exposed_ports},
        "Volumes": {path: {} for path in settings.volumes},
    }
    if check := settings.healthcheck:
        fields["Healthcheck"] = {
            "Test": ["CMD", *check.command],
            "Interval": int(check.interval_s * 1e9),
            "Timeout": int(check.timeout_s * 1e9),
            "StartInterval": int(check.start_interval_s * 1e9),
        }
    return {key: value for key, value in fields.items() if value}

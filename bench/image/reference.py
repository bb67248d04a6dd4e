"""Names of images in registries, read and completed as container engines do.

``nginx`` means ``docker.io/library/nginx:latest``; the first part names a registry only when
it holds a dot or a colon, or is ``localhost``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.errors import BadInput

DOCKER_HUB = "docker.io"
_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_WHOLE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """An image in a registry, complete.

    Attributes:
        tag: "" where a digest says which one.
        digest: ``sha256:…`` or "".
    """

    domain: str
    path: str
    tag: str
    digest: str

    @property
    def repository(self) -> str:
        """Registry and path: ``docker.io/library/nginx``."""
        return f"{self.domain}/{self.path}"

    @property
    def full(self) -> str:
        """All of it: ``docker.io/library/nginx:1.27``."""
        return self.repository + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def familiar(self) -> str:
        """What users call it, without what goes without saying: ``nginx:1.27``, ``nginx``."""
        return self.full.removeprefix(f"{DOCKER_HUB}/").removeprefix("library/").removesuffix(
            ":latest"
        )  # fmt: skip

    def at(self, digest: str) -> Reference:
        """The one of this digest in the same repository."""
        return Reference(self.domain, self.path, "", digest)


def parse(text: str) -> Reference:
    """Read a reference; ``docker://`` before it may be left out.

    Raises:
        BadInput: it is none.
    """
    rest = text.removeprefix("docker://")
    first, slash, _ = rest.partition("/")
    if not (slash and (re.search(r"[.:]", first) or first == "localhost")):
        rest = f"{DOCKER_HUB}/{rest}" if slash else f"{DOCKER_HUB}/library/{rest}"
    found = _WHOLE.fullmatch(rest)
    if found is None:
        raise BadInput(
            f"{text[:80]!r} is no image reference",
            "write it as REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…, NAME in small letters",
        )
    domain, path = found["domain"], found["path"]
    if domain == "index.docker.io":
        domain = DOCKER_HUB
    if domain == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    # With both, the digest alone says which one: no registry client takes two.
    tag = "" if found["digest"] else found["tag"] or "latest"
    return Reference(domain, path, tag, found["digest"] or "")


def explicit(text: str) -> bool:
    """Whether it can only be meant as a reference: a bare word is a name, perhaps mistyped."""
    return text.startswith("docker://") or any(mark in text for mark in "/:@")

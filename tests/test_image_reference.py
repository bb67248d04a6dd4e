"""What users write for an image of a registry, and what it means."""

from __future__ import annotations

import pytest

from bench.errors import BadInput
from bench.image.reference import explicit, parse

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("nginx", "docker.io/library/nginx:latest", "nginx"),
        ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
        ("docker://nginx", "docker.io/library/nginx:latest", "nginx"),
        ("org/app", "docker.io/org/app:latest", "org/app"),
        ("docker.io/nginx", "docker.io/library/nginx:latest", "nginx"),
        ("index.docker.io/org/app:2", "docker.io/org/app:2", "org/app:2"),
        ("localhost/app", "localhost/app:latest", "localhost/app"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app"),
        ("a.b/c/d/e_f--g:T.1-x", "a.b/c/d/e_f--g:T.1-x", "a.b/c/d/e_f--g:T.1-x"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", f"nginx@{DIGEST}"),
        (f"r.io/x:1@{DIGEST}", f"r.io/x@{DIGEST}", f"r.io/x@{DIGEST}"),
    ],
)
def test_references_are_completed_as_engines_do(text: str, full: str, familiar: str) -> None:
    """The registry, ``library/`` and ``latest`` go without saying; a digest outweighs a tag."""
    assert (parse(text).full, parse(text).familiar) == (full, familiar)
    assert parse(parse(text).full) == parse(parse(text).familiar) == parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "Upper", "a//b", "a/", "/a", "a:", "a:b:c", "a b", "a@sha256:12", "a@md5:0a", "-a",
     "a/../b", "a\n", "registry:port/a", "a.b:999999/c", "docker://", "ä"],
)  # fmt: skip
def test_what_is_none_is_refused(text: str) -> None:
    """Nothing reaches skopeo that is no reference."""
    with pytest.raises(BadInput, match="no image reference"):
        parse(text)


def test_a_bare_word_is_a_name() -> None:
    """Nobody is asked for what may be a typing error; a tag, a path or a registry says it."""
    assert not explicit("nginx")
    assert all(map(explicit, ("nginx:1", "a/b", "nginx@sha256:0", "docker://nginx")))

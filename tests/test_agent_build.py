"""Our C programs are compiled once, static, into the cache, keyed by all that decides them."""

from __future__ import annotations

import concurrent.futures
import subprocess
from pathlib import Path

import pytest

from bench.agent.build import agent_path, build_static
from bench.errors import HostCannot, HvctError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small program, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "word.h").write_text('#define WORD "one"\n')
    source = tmp_path / "say.c"
    source.write_text('#include "word.h"\n#include <stdio.h>\nint main(void) { puts(WORD); }\n')
    return source


def says(program: Path) -> str:
    """What a program prints."""
    return subprocess.run([program], capture_output=True, check=True, text=True).stdout.strip()


def test_agent_is_static() -> None:
    """The agent needs no loader: it runs in any image."""
    assert b"/ld-" not in agent_path().read_bytes()


def test_key_is_the_content(source: Path) -> None:
    """Nothing changed is found again; a source, header or flag changed is another program."""
    header = source.with_name("word.h")
    first = build_static("say", [source], [header])
    assert says(first) == "one"
    assert build_static("say", [source], [header]) == first
    header.write_text('#define WORD "two"\n')
    second = build_static("say", [source], [header])
    assert second != first and says(second) == "two" and says(first) == "one"
    assert build_static("say", [source], [header], ["-DX=1"]) not in (first, second)


def test_two_at_once(source: Path) -> None:
    """Several that build the same get one complete program, and leave nothing half-made."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        made = {f.result() for f in [pool.submit(build_static, "say", [source]) for _ in range(4)]}
    assert len(made) == 1 and says(made.pop()) == "one"
    cache = source.parent / "cache" / "hvct"
    assert len(list((cache / "programs").iterdir())) == 1
    assert list((cache / "tmp").iterdir()) == []


def test_errors_say_what_to_do(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is an error that is shown; without a compiler the hint names the package."""
    source.write_text("int main(void) { int unused; }\n")
    with pytest.raises(HvctError, match="unused"):
        build_static("say", [source])
    monkeypatch.setenv("PATH", str(source.parent))
    with pytest.raises(HostCannot, match="no C compiler") as failure:
        build_static("say", [source])
    assert "musl-tools" in failure.value.hint

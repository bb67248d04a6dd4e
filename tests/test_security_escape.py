"""Attempts to get out: an arm of ours lets nothing through that Docker refuses on this host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine import Engine
from escapes import COLUMNS, PAGE, Results, Verdict, attempt_everywhere, published, verdict

from bench.journal import open_run

pytestmark = [pytest.mark.root, pytest.mark.vm]


@pytest.fixture(scope="module")
def results(
    docker: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Results]]:
    """Every attempt, everywhere, once."""
    space = tmp_path_factory.mktemp("escape")
    with open_run(space / "run") as context:
        yield attempt_everywhere(docker, context, space)


@pytest.mark.parametrize("column", COLUMNS[1:])
def test_nothing_passes_that_docker_refuses(results: dict[str, Results], column: str) -> None:
    """Attempt by attempt: refused or not there wherever Docker's is."""
    theirs, ours = results["Docker"], results[column]
    assert theirs.keys() == ours.keys() and len(ours) > 100
    weaker = {
        title: code
        for title, code in ours.items()
        if verdict(code) is Verdict.PASSED and verdict(theirs[title]) is Verdict.REFUSED
    }
    assert not weaker


def test_attempts_can_succeed(results: dict[str, Results]) -> None:
    """Docker lets some through, so that a program which tries nothing is noticed."""
    passed = {title for title, code in results["Docker"].items() if verdict(code) is Verdict.PASSED}
    assert {"a raw socket", "gain rights by a set-user-ID program", "regain CAP_MKNOD"} <= passed


def test_the_page_says_what_happens(results: dict[str, Results]) -> None:
    """docs/security.md has every attempt with its verdict, where the host has what is attempted."""
    said = published(PAGE.read_text())
    for column in COLUMNS:
        assert said[column].keys() == results[column].keys(), "run nox -s security"
        stale = {
            title: (said[column][title], now)
            for title, code in results[column].items()
            if (now := verdict(code)) is not said[column][title]
            and Verdict.ABSENT not in (now, said[column][title])
        }
        assert not stale, "run nox -s security"

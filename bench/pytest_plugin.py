"""The pytest plugin: fixtures that start one image and command in every way that was asked for.

``docs/pytest.md`` has the examples. pytest loads this module in every test session of an
environment that has hvct, so it imports nothing but pytest; what works is in
`bench.pytest_instances`, imported by the first test that wants an instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bench.backend import Instance
    from bench.pytest_instances import Instances, Launcher, Starter

DEFAULT_ARMS = "container,process"
ARM = "hvct_arm"
MARKER = (
    "hvct(image, argv, ...): what hvct_instance and hvct_start run; the keys of a workload in a "
    "plan of hvct"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--hvct-arms``, ``--hvct-kernel`` and the ini setting ``hvct_arms``."""
    group = parser.getgroup("hvct", "virtual machines, containers and processes (hvct)")
    group.addoption(
        "--hvct-arms",
        metavar="A,B,…",
        help="run each test that uses hvct's fixtures once in each of these: vm, container, "
        f"process …; default: {DEFAULT_ARMS}",
    )
    group.addoption(
        "--hvct-kernel", type=Path, metavar="FILE", help="guest kernel instead of the default one"
    )
    parser.addini("hvct_arms", "the default of --hvct-arms", default=DEFAULT_ARMS)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; refuse arms that do not exist before anything runs."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption("hvct_arms"):
        _chosen(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses an instance runs once per arm."""
    if ARM in metafunc.fixturenames:
        metafunc.parametrize(ARM, _chosen(metafunc.config), indirect=True)


def _chosen(config: pytest.Config) -> list[str]:
    from bench import arms
    from bench.errors import BadInput

    asked = config.getoption("hvct_arms") or config.getini("hvct_arms")
    try:
        return [arm.name for arm in arms.resolve([name.strip() for name in asked.split(",")])]
    except BadInput as error:
        raise pytest.UsageError(f"--hvct-arms: {error.message}; {error.hint}") from None


@pytest.fixture(scope="session")
def _hvct_instances(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instances]:
    """What all tests share: one journaled run with the arms used so far."""
    from bench.pytest_instances import Instances

    folder = tmp_path_factory.mktemp("hvct")
    with Instances(folder, request.config.getoption("hvct_kernel")) as instances:
        yield instances


@pytest.fixture
def hvct_arm(request: pytest.FixtureRequest) -> str:
    """The arm this test runs in: ``vm``, ``container``, ``process`` … (`--hvct-arms`)."""
    return str(request.param)


@pytest.fixture
def hvct_launch(
    request: pytest.FixtureRequest, _hvct_instances: Instances, hvct_arm: str
) -> Iterator[Launcher]:
    """What starts instances, each as a context manager.

    ``with hvct_launch("busybox", ["true"]) as instance: …``. Further keywords
    are the keys of a workload in a plan. Inside the block it is ready; leaving the block, or
    the test in whatever way, releases it.
    """
    with _hvct_instances.launcher(hvct_arm, _extra_info(request)) as launcher:
        yield launcher


@pytest.fixture
def hvct_run(hvct_launch: Launcher) -> Callable[..., Instance]:
    """Runs a command to its end: ``hvct_run("busybox", ["echo", "hello"]).stdout``."""
    return hvct_launch.to_end


@pytest.fixture
def hvct_instance(request: pytest.FixtureRequest, hvct_launch: Launcher) -> Iterator[Instance]:
    """A running instance of what the ``hvct`` marker names, ready, until the test has ended."""
    with hvct_launch(**_marked(request)) as instance:
        yield instance


@pytest.fixture
def hvct_start(request: pytest.FixtureRequest, hvct_launch: Launcher) -> Starter:
    """What measures starts of what the marker names: ``hvct_start(benchmark, rounds=10)``."""
    from bench.pytest_instances import Starter

    return Starter(hvct_launch, _marked(request))


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    marks = list(request.node.iter_markers("hvct"))
    if not marks:
        pytest.fail(
            f"{request.node.name} uses {request.fixturename} and has no marker that says what to "
            'run: @pytest.mark.hvct(image="busybox", argv=["true"])',
            pytrace=False,
        )
    wanted: dict[str, Any] = {}
    for mark in reversed(marks):  # the nearest one wins, key by key
        wanted |= dict(zip(("image", "argv"), mark.args, strict=False)) | mark.kwargs
    return wanted


def _extra_info(request: pytest.FixtureRequest) -> dict[str, object]:
    """What pytest-benchmark stores with a result; a plain dictionary without pytest-benchmark."""
    if "benchmark" not in request.fixturenames:
        return {}
    kept = getattr(request.getfixturevalue("benchmark"), "extra_info", None)
    return kept if isinstance(kept, dict) else {}

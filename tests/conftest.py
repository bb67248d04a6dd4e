"""Images that many tests share: built once, kept in the normal cache."""

from __future__ import annotations

import pytest

from bench.errors import HostCannot
from bench.image import store
from bench.model import Image


def _prepared(name: str) -> Image:
    try:
        return store.prepare(name)
    except HostCannot as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture(scope="session")
def busybox() -> Image:
    """The tiny image."""
    return _prepared("busybox")


@pytest.fixture(scope="session")
def default_image() -> Image:
    """The image with the workloads' programs; building it takes half a minute, once."""
    return _prepared("default")

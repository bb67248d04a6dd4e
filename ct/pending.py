"""A launch between its request and its answer, and what it found ready beforehand."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bench.cgroup import Cgroup, way_in
from bench.errors import HvctError, LaunchFailed
from ct.instance import LauncherInstance
from ct.rootfs import Lower
from ct.scratch import LoopDisk
from ct.wire import Launched, LaunchRequest, Wire
from ct.worker import Worker


@dataclass
class Place:
    """Who makes an instance's first process, and what was there before it was requested.

    Attributes:
        cgroup: a group of its own that was made before; None where the launch makes it.
        joined: how its process gets into that group, "" where the launch joins it.
        namespaces: descriptors of network namespaces for its process to enter.
        until_answered: given back once the launcher has answered, or will not.
    """

    wire: Wire
    cgroup: Cgroup | None = None
    joined: str = ""
    namespaces: tuple[int, ...] = ()
    until_answered: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def parked(self) -> bool:
        """Whether who makes it is in its group already."""
        return not isinstance(self.wire, Worker)


class Pending:
    """A launch that was asked for. `complete` waits for the answer; left without it, it is undone.

    Args:
        make: the instance, from what the launcher answered.
        failure: what went wrong meanwhile, to be raised once the launcher has answered.
        undo: what to give back if there will be no instance.
    """

    def __init__(
        self,
        worker: Worker,
        place: Place,
        request: LaunchRequest,
        make: Callable[[Launched], LauncherInstance],
        failure: HvctError | None,
        undo: contextlib.ExitStack,
    ) -> None:
        self._worker, self._place, self._request = worker, place, request
        self._make, self._failure = make, failure
        self._undo, self._over = undo, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._over:
            with self._undo, contextlib.suppress(HvctError):
                self._answer()

    def complete(self) -> LauncherInstance:
        """The instance, once its process exists; it may not be up yet.

        Raises:
            LaunchFailed: the launch failed; nothing of it is left.
        """
        with self._undo:
            launched = self._answer()
            if self._failure:
                raise self._failure
            instance = self._make(launched)
            self._undo.pop_all()
        return instance

    def _answer(self) -> Launched:
        self._over = True
        with self._place.until_answered:
            launched = self._place.wire.launched(self._request)
        self._undo.callback(_discard, self._worker, launched)
        return launched


def _discard(worker: Worker, launched: Launched) -> None:
    """Undo a launch that is not handed out."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
    os.close(launched.pidfd)
    with contextlib.suppress(LaunchFailed):  # the launcher is gone as well
        worker.wait_exited(launched.id, 10.0)


def facts(
    lower: Lower, disk: LoopDisk | None, request: LaunchRequest, joined: str, launched: Launched
) -> Callable[[], dict[str, object]]:
    """How an instance was set up, put into words when somebody asks."""
    return functools.partial(_facts, lower, disk, request, joined, launched)


def _facts(
    lower: Lower, disk: LoopDisk | None, request: LaunchRequest, joined: str, launched: Launched
) -> dict[str, object]:
    if not joined:
        files = (step.arguments[0] for step in request.steps if step.do == "join")
        joined = way_in(files, born=bool(request.cgroup))
    return {
        "image_mount": lower.path_taken,
        "image_direct_io": lower.direct_io,
        "image_mount_detail": lower.detail,
        "scratch_disk": disk.description if disk else "",
        "join": joined,
        "namespaces": hex(request.flags),
        "steps_us": {
            f"{number:02d} {step.describe()}": round((stamp - before) / 1000, 1)
            for number, (step, before, stamp) in enumerate(
                zip(
                    request.steps,
                    (launched.born_ns, *launched.step_ns),
                    launched.step_ns,
                    strict=False,
                )
            )
        },
    }

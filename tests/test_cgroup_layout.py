"""Finding the hierarchies of a host in what the kernel says about its mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cgroupfs
from bench.errors import HvctError

SEPARATE = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_one_mount_per_controller() -> None:
    """Each controller is found at its own mount, named hierarchies are passed over."""
    controllers, unified = cgroupfs.parse_mountinfo(SEPARATE)
    assert controllers == {
        "cpu": Path("/sys/fs/cgroup/cpu"),
        "cpuacct": Path("/sys/fs/cgroup/cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory"),
    }
    assert unified == Path("/sys/fs/cgroup/unified")


def test_controllers_mounted_together_share_a_directory() -> None:
    """A co-mounted `cpu,cpuacct` hierarchy gets one group, not two."""
    line = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    controllers, _ = cgroupfs.parse_mountinfo(line)
    assert controllers["cpu"] == controllers["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert cgroupfs.Layout(1, controllers).mounts == (Path("/sys/fs/cgroup/cpu,cpuacct"),)


def test_mount_points_with_blanks_are_unescaped() -> None:
    """The kernel writes a blank in a mount point as an octal escape."""
    line = "33 31 0:30 / /my\\040groups/memory rw - cgroup cgroup rw,memory\n"
    assert cgroupfs.parse_mountinfo(line)[0]["memory"] == Path("/my groups/memory")


def test_malformed_lines_are_passed_over() -> None:
    """A line that is cut off does not hide the others."""
    controllers, _ = cgroupfs.parse_mountinfo("31 23\n- cgroup\n" + SEPARATE)
    assert "memory" in controllers


def test_this_hosts_version_agrees_with_its_file_system() -> None:
    """Version 2 means that /sys/fs/cgroup itself is cgroup2; a mount beside v1 does not count."""
    is_two = cgroupfs.statfs_type(cgroupfs.ROOT) == cgroupfs.CGROUP2_MAGIC
    assert cgroupfs.version() == (2 if is_two else 1)
    assert cgroupfs.layout().controllers["memory"].is_dir()


def test_a_refused_write_names_file_and_value(tmp_path: Path) -> None:
    """An error of the kernel reaches the user with path and value."""
    with pytest.raises(HvctError, match="missing: No such file"):
        cgroupfs.write_text(tmp_path / "missing", "1")

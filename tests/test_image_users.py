"""An image's user, by name or number, from the image's own tables and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.image.users import Accounts, ids_of, read_accounts
from bench.model import Ids

ACCOUNTS = Accounts(
    passwd=(
        "root:x:0:0:root:/root:/bin/sh\n"
        "# a comment\n"
        "broken line\n"
        "redis:x:101:103::/var/lib/redis:/bin/false\n"
        "4711:x:5000:5001::/:/bin/sh\n"
        "odd:x:notanumber:1::/:\n"
        "huge:x:99999999999:1::/:\n"
    ),
    group="root:x:0:\nredis:x:103:redis\nssl:x:110:other,redis\nmail:x:8:root\ntape:x:26:redis,\n",
)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Ids(0, 0, (0, 8), "/root")),
        ("root", Ids(0, 0, (0, 8), "/root")),
        ("0", Ids(0, 0, (0, 8), "/root")),
        ("redis", Ids(101, 103, (26, 103, 110), "/var/lib/redis")),
        ("101", Ids(101, 103, (26, 103, 110), "/var/lib/redis")),
        ("redis:ssl", Ids(101, 110, (110,), "/var/lib/redis")),
        ("redis:7", Ids(101, 7, (7,), "/var/lib/redis")),
        ("1234", Ids(1234, 0, (0,))),
        ("1234:mail", Ids(1234, 8, (8,))),
        ("1234:5678", Ids(1234, 5678, (5678,))),
        (":ssl", Ids(0, 110, (110,), "/root")),
        ("4711", Ids(5000, 5001, (5001,), "/")),
        ("4294967294", Ids(4294967294, 0, (0,))),
    ],
)
def test_users(user: str, expected: Ids) -> None:
    """Names, numbers and groups resolve as container engines resolve them."""
    assert ids_of(ACCOUNTS, user) == expected


@pytest.mark.parametrize(
    "user",
    ["nobody", "redis:none", "redis:", "-1", "1.5", "4294967295", "٣", "a:b:c", "odd", "huge"],
)
def test_users_that_do_not_exist(user: str) -> None:
    """Unknown names and impossible numbers are bad input with one line and a hint."""
    with pytest.raises(BadInput) as caught:
        ids_of(ACCOUNTS, user)
    assert "\n" not in caught.value.message and caught.value.hint


def test_links_stay_inside_the_image(tmp_path: Path) -> None:
    """A passwd that is a link is followed inside the image: absolute, or up beyond its root."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "real").write_text("inside:x:1:2::/:\n")
    for target in ("/real", "../real", "../../../../../../../../real"):
        (root / "etc" / "passwd").symlink_to(target)
        assert ids_of(read_accounts(root), "inside") == Ids(1, 2, (2,), "/")
        (root / "etc" / "passwd").unlink()
    for target in ("/etc/host-only", f"{tmp_path}/host", "../../host"):
        (tmp_path / "host").write_text("outside:x:1:2::/:\n")
        (root / "etc" / "passwd").symlink_to(target)
        assert read_accounts(root).passwd == ""
        (root / "etc" / "passwd").unlink()


def test_links_to_the_host_through_folders_and_proc(tmp_path: Path) -> None:
    """An /etc that is a link, or a link through /proc, does not lead to the host's tables."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "etc").symlink_to("/../../../../../../etc")
    with pytest.raises(BadInput):  # a link to itself
        read_accounts(tmp_path / "root")
    (tmp_path / "root" / "etc").unlink()
    (tmp_path / "root" / "etc").symlink_to("/proc/self/root/etc")
    assert read_accounts(tmp_path / "root") == Accounts()


def test_tables_that_are_no_files(tmp_path: Path) -> None:
    """A pipe, a folder or a huge file in place of passwd is bad input and never blocks."""
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc" / "passwd"
    os.mkfifo(passwd)
    with pytest.raises(BadInput):
        read_accounts(tmp_path)
    passwd.unlink()
    passwd.mkdir()
    with pytest.raises(BadInput):
        read_accounts(tmp_path)
    passwd.rmdir()
    with passwd.open("wb") as handle:
        handle.truncate(1 << 30)
    with pytest.raises(BadInput):
        read_accounts(tmp_path)
    passwd.write_bytes(b"binary\xff:x:1:1::/:\n")
    assert read_accounts(tmp_path).group == ""

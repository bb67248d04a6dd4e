"""Distributions hvct knows how to install packages on, and how each names what hvct needs.

``packages.txt`` is the list that ./hvct installs from; a test holds this one against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.checks.tree import Tree


@dataclass(frozen=True)
class Distribution:
    """A family of distributions with one way to install packages."""

    family: str
    install: str


DISTRIBUTIONS = {
    "debian": Distribution("debian", "apt-get install"),
    "fedora": Distribution("fedora", "dnf install"),
    "arch": Distribution("arch", "pacman -S --needed"),
}
KIN = {"debian": "debian", "ubuntu": "debian", "fedora": "fedora", "rhel": "fedora",
       "centos": "fedora", "arch": "arch", "archarm": "arch"}  # fmt: skip
AUR = "aur/"  # a package that Arch Linux has in its user repository alone


def distribution(tree: Tree) -> Distribution | None:
    """The family a host belongs to, by its own name or that of its kin (os-release(5))."""
    about = tree.fields("/etc/os-release", "=")
    names = [about.get("ID", ""), *about.get("ID_LIKE", "").strip('"').split()]
    for name in names:
        if name.strip('"') in KIN:
            return DISTRIBUTIONS[KIN[name.strip('"')]]
    return None


def how_to_install(tree: Tree, packages: dict[str, str]) -> str:
    """The command that installs a package, given its name by family.

    On a distribution that is not known: the name that Debian has for it.
    """
    known = distribution(tree)
    if known is None:
        return f"install what your distribution has for Debian's package {packages['debian']}"
    name = packages[known.family]
    if name.startswith(AUR):
        return f"build {name.removeprefix(AUR)} from Arch's user repository (AUR)"
    return f"{known.install} {name}"

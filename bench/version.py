"""The version of hvct, in one place: the package's metadata and every stored run read it here."""

VERSION = "0.1.0"

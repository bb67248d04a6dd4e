"""Getting the kernel proper out of a bzImage, so that the guest does not unpack itself.

Booting the uncompressed ELF saves 0.3–0.5 s under TCG and the decompressor's share of
every boot under KVM. The boot header says where the payload is; searching for magic
numbers finds false ones.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

from bench.command import run
from bench.errors import BadInput

# Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), version 2.08 and later.
_SETUP_SECTS = 0x1F1
_MAGIC = 0x202  # "HdrS"
_PROTOCOL = 0x206
_KERNEL_VERSION = 0x20E
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
_HEADER_END = 0x250

# The build appends the unpacked size to every payload but gzip's, which has its own.
_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_PT_NOTE = 4
_XEN_PHYS32_ENTRY = 18


def is_elf(data: bytes) -> bool:
    """True for an ELF file, an already unpacked kernel."""
    return data.startswith(b"\x7fELF")


def release(data: bytes) -> str:
    """The kernel's release (``uname -r``) from a bzImage's header or an ELF's banner.

    Raises:
        BadInput: it is not a Linux kernel.
    """
    if is_elf(data):
        at = data.find(b"Linux version ")
        if at < 0:
            raise BadInput("the kernel file is an ELF without a Linux banner", _HINT)
        return data[at + 14 : at + 142].split(b" ", 1)[0].decode("ascii", "replace")
    _check_header(data)
    (pointer,) = struct.unpack_from("<H", data, _KERNEL_VERSION)
    text = data[0x200 + pointer : 0x200 + pointer + 128].split(b"\0", 1)[0]
    return text.split(b" ", 1)[0].decode("ascii", "replace")


def unpack(data: bytes) -> bytes:
    """The ELF inside a bzImage (an ELF is returned as it is).

    Raises:
        BadInput: it is not a bzImage, or its compression is unknown.
        HostCannot: the program that unpacks it is not installed.
    """
    if is_elf(data):
        return data
    _check_header(data)
    setup_sectors = data[_SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * 512 + offset
    payload = data[start : start + length]
    if len(payload) < length or length < 16:
        raise BadInput("the kernel file is cut off", _HINT)
    elf = _decompress(payload)
    if not is_elf(elf):
        raise BadInput("the kernel's payload is not an ELF file", _HINT)
    return elf


def boots_directly(elf: bytes) -> bool:
    """True when QEMU can enter this ELF: it carries the PVH entry note (CONFIG_PVH)."""
    (phoff,) = struct.unpack_from("<Q", elf, 32)
    entry_size, count = struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        at = phoff + index * entry_size
        (kind,) = struct.unpack_from("<I", elf, at)
        if kind != _PT_NOTE:
            continue
        (offset,) = struct.unpack_from("<Q", elf, at + 8)
        (size,) = struct.unpack_from("<Q", elf, at + 32)
        if _has_note(elf[offset : offset + size]):
            return True
    return False


_HINT = "give a bzImage or vmlinux of Linux for x86-64 with --kernel"


def _check_header(data: bytes) -> None:
    if len(data) < _HEADER_END or data[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise BadInput("the kernel file is not a Linux bzImage", _HINT)
    (protocol,) = struct.unpack_from("<H", data, _PROTOCOL)
    if protocol < 0x208:
        raise BadInput(f"the kernel's boot protocol {protocol:#x} is too old", _HINT)


def _decompress(payload: bytes) -> bytes:
    name = next((name for magic, name in _FORMATS.items() if payload.startswith(magic)), "")
    body = payload if name == "gzip" else payload[:-4]
    if name == "gzip":
        return gzip.decompress(payload)
    if name == "bzip2":
        return bz2.decompress(body)
    if name == "lzma":
        return lzma.decompress(body, format=lzma.FORMAT_ALONE)
    if name == "xz":
        return lzma.decompress(body)
    if name in ("lz4", "zstd"):  # not in the standard library
        return run([name, "-dc"], input_bytes=body, hint=f"install {name}")
    raise BadInput(f"the kernel's compression is unknown (it begins {payload[:6].hex()})", _HINT)


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if name == b"Xen\0" and kind == _XEN_PHYS32_ENTRY:
            return True
        at += 12 + ((name_size + 3) & ~3) + ((value_size + 3) & ~3)
    return False

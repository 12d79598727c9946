"""A file system that hangs: its files can be found and opened, and whoever reads them waits for ever.

It speaks the protocol of the Linux kernel's FUSE (include/uapi/linux/fuse.h), as a network mount does whose server went
away: a reader cannot even be killed while it waits. When the block ends all readers get an error.
"""

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT = (
    *(1, 2, 3, 14, 15, 18, 25, 26, 27, 28, 29),
    36,
)
SILENT = {READ, FORGET, INTERRUPT}
FOLDER, FILE = 1, 2  # nodes
SIZE = 100_000
DETACH, FORCE = 2, 1  # of umount2


@contextmanager
def hanging_mount(folder: Path, name: str) -> Iterator[threading.Event]:
    """Mount a file system with one file over ``folder``; the event is set as soon as somebody reads the file."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"hanging", os.fsencode(folder), b"fuse", 0, options.encode()):
        os.close(device)
        pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
    reading = threading.Event()
    server = threading.Thread(target=_serve, args=(device, name.encode(), reading))
    server.start()
    try:
        yield reading
    finally:
        libc.umount2(os.fsencode(folder), FORCE)  # which ends the requests that wait
        libc.umount2(os.fsencode(folder), DETACH)
        server.join()
        os.close(device)


def _serve(device: int, name: bytes, reading: threading.Event) -> None:
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                continue
            return  # ENODEV: not mounted any more
        _, code, number, node = struct.unpack_from("IIQQ", request)
        if code == READ:
            reading.set()
        if code in SILENT:
            continue
        answer = _answer(code, node, request[40:], name)
        error_number, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(device, struct.pack("IiQ", 16 + len(data), error_number, number) + data)


def _answer(code: int, node: int, body: bytes, name: bytes) -> bytes | int:
    """Return what the kernel wants to know, or an error number."""
    if code == INIT:
        return struct.pack("IIIIHHIIHH8I", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 1, 0, *[0] * 8)
    if code == LOOKUP:
        found = body.rstrip(b"\0") == name
        return struct.pack("QQQQII", FILE, 0, 60, 60, 0, 0) + _attributes(FILE) if found else errno.ENOENT
    if code == GETATTR:
        return struct.pack("QII", 60, 0, 0) + _attributes(node)
    if code in (OPEN, OPENDIR):
        return struct.pack("QII", 0, 0, 0)
    if code == READDIR:
        (offset,) = struct.unpack_from("Q", body, 8)
        entry = struct.pack("QQII", FILE, 1, len(name), stat.S_IFREG >> 12) + name
        return b"" if offset else entry + bytes(-len(entry) % 8)
    return b"" if code in (RELEASE, RELEASEDIR, FLUSH) else errno.ENOSYS


def _attributes(node: int) -> bytes:
    mode = stat.S_IFREG | 0o644 if node == FILE else stat.S_IFDIR | 0o755
    size = SIZE if node == FILE else 0
    return struct.pack("6Q10I", node, size, 1, 1, 1, 1, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

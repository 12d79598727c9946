"""Files that appear whole or not at all, and files that are opened for what they are."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harec_deploy.errors import VideoError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of ``path`` for writing; it takes the final name when the block ends well.

    The temporary file has mode 0600 while it is written, is synced before the rename and removed when the block raises,
    so a reader sees the old content or the new, never a part.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling folder; it takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".old", dir=path.parent))
            path.replace(old)
            staging.replace(path)
            shutil.rmtree(old)
        else:
            staging.replace(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open ``path`` for reading if it is a regular, non-empty file, and yield its descriptor.

    The check is made on the opened descriptor, so that a FIFO or a link put in the file's place after it was found is
    not followed and does not block. A symbolic link as the last part of the path is refused.

    Raises:
        VideoError: vanished, not_regular, unreadable or empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise VideoError("vanished", "the file is gone") from None
    except OSError as error:
        # ELOOP is a link, ENXIO a socket or a device that is not there.
        kind = "not_regular" if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV) else "unreadable"
        raise VideoError(kind, f"cannot open: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("not_regular")
        if status.st_size == 0:
            raise VideoError("empty")
        yield descriptor
    finally:
        os.close(descriptor)

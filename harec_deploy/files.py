"""Files that appear whole or not at all, and files that are opened for what they are."""

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harec_deploy.errors import OutputError, OutputLocked, VideoError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary sibling of ``path`` for writing; it takes the final name when the block ends well.

    The temporary file has mode 0600 while it is written, is synced before the rename and removed when the block raises,
    so a reader sees the old content or the new, never a part.
    """
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_UMASK)
        Path(name).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling folder; it takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_UMASK)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".old", dir=path.parent))
            path.replace(old)
            try:
                staging.replace(path)
            except BaseException:
                old.replace(path)
                raise
            shutil.rmtree(old)
        else:
            staging.replace(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def locked(path: Path, remedy: str = "name another --out") -> Iterator[None]:
    """Keep other processes from writing ``path`` by a lock on a file beside it, which says who holds it.

    The lock is the system's, so it is free as soon as its process has ended, in whatever way.

    remedy: what a person can do who cannot wait.

    Raises:
        OutputLocked: another process holds it.
        OutputError: the lock's file cannot be made there.
    """
    lock = lock_path(path)
    try:
        handle = _take(lock)
    except BlockingIOError:
        holder = lock.read_text(errors="replace").strip() or "another process"
        raise OutputLocked(f"{path} is written by {holder}: wait until it has ended, or {remedy}") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be locked: {lock.name}: {error.strerror}; {remedy}") from None
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} on host {socket.gethostname()}\n".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def lock_path(path: Path) -> Path:
    """Return the file beside ``path`` that is locked in its place."""
    return path.with_name(f"{path.name}.lock")


def _take(lock: Path) -> int:
    """Return the descriptor of the locked file; it may be removed by its last holder while we wait for it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


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


def cache_folder() -> Path:
    """Return the user's folder for what can be made again; it may not exist."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Return the user's folder for what was measured on this machine; it may not exist."""
    return _user_folder("XDG_STATE_HOME", ".local/state")


def _user_folder(variable: str, default: str) -> Path:
    # https://specifications.freedesktop.org/basedir-spec: a relative path counts as none
    given = Path(os.environ.get(variable, ""))
    try:
        home = given if given.is_absolute() else Path.home() / default
    except RuntimeError:  # no HOME, and a user that the system does not know, as in a container
        raise OutputError(f"there is no home folder: set {variable} to an absolute path") from None
    return home / "harec-deploy"


def _prefix(path: Path) -> str:
    """Return the beginning of a temporary sibling's name, short enough for any file system."""
    return os.fsdecode(b"." + os.fsencode(path.name)[:100] + b".")


_UMASK = os.umask(0o022)  # can only be read by setting it, which is not for threads to do
os.umask(_UMASK)


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

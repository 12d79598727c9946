"""What TensorRT measured of its kernels, kept between builds, so that the next build of a like graph is quick."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from harec_deploy.devices import CudaDevice
from harec_deploy.files import atomic_write, cache_folder

_DIGEST_BYTES = hashlib.sha256().digest_size


class TimingCache:
    """A timing cache in the user's cache folder, for one TensorRT version and one model of GPU.

    The file begins with the SHA-256 of what follows it: TensorRT reads the rest in native code, which damage must not
    reach. A cache that cannot be read or written costs time, so ``say`` tells of it and the build goes on.
    """

    def __init__(self, device: CudaDevice, version: str, say: Callable[[str], None]) -> None:
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
        capability = "".join(map(str, device.capability))
        self.path: Path = cache_folder() / "tensorrt" / f"{version}-{gpu}-sm{capability}.timing"
        self._say = say

    def read(self) -> bytes:
        """Return what was written last, or nothing."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.ignore(f"cannot be read ({error.strerror})")
            return b""
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            self.ignore("is damaged")
            return b""
        return content

    def write(self, content: bytes) -> None:
        """Keep ``content`` in place of what was there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as stream:
                stream.write(hashlib.sha256(content).digest() + content)
        except OSError as error:
            self._say(f"the timing cache {self.path} cannot be written ({error.strerror}): no build will be quicker")

    def ignore(self, why: str) -> None:
        """Say that the cache is not used."""
        self._say(f"the timing cache {self.path} {why}: not used, so this build takes longer")

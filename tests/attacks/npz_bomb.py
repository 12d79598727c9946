"""Check clips that unpack to gigabytes, or say that they do; and an array that is code."""

import resource
import zipfile
from pathlib import Path

import msgspec
import numpy as np

from harec_deploy.bundle import Bundle, file_ref, save
from tests.attacks.common import attack, held, not_loaded, refused, run
from tests.attacks.tiny import FRAMES, SIDE, tiny_bundle
from tests.media import make_video

GIGABYTE = 1 << 30


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """Return the beginning of a .npy file."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def bundle(name: str, clips: list[bytes], *, packed: bool) -> Bundle:
    """Write a bundle whose check clips have this content and the right hash."""
    made = tiny_bundle(Path(name))
    path = made.folder / "check.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED, compresslevel=1) as archive:
        archive.writestr("logits.npy", header((1, 3), "<f4") + bytes(12))
        with archive.open("clips.npy", "w", force_zip64=True) as stream:
            for part in clips:
                stream.write(part)
    return save(made.folder, msgspec.structs.replace(made.spec, check=file_ref(made.folder, path)))


def mount() -> str:
    """Label with such bundles, and load them here."""
    make_video(Path("v.mp4"), frames=10)
    marker = Path("marker").absolute()
    one = FRAMES * SIDE * SIDE * 3
    count = GIGABYTE // 2 // one
    megabyte = bytes(1 << 20)
    bundle("bomb", [header((count, FRAMES, SIDE, SIDE, 3)), *[megabyte] * (GIGABYTE >> 21)], packed=True)
    bundle("claim", [header((10**9, FRAMES, SIDE, SIDE, 3)), megabyte], packed=False)
    bundle("negative", [header((-1, FRAMES, SIDE, SIDE, 3)), megabyte], packed=False)
    bundle("shape", [header((1, 2)), megabyte], packed=False)
    bundle("object", [header((1,), "|O"), f"cposix\nmkdir\n(V{marker}\ntR.".encode()], packed=False)
    bundle("brackets", [b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000], packed=False)
    names = ["bomb", "claim", "negative", "shape", "object", "brackets", "text", "array"]
    for name, content in (("text", b"no archive"), ("array", header((1, 2)) + b"ab")):
        made = bundle(name, [], packed=False)
        (made.folder / "check.npz").write_bytes(content)
        save(made.folder, msgspec.structs.replace(made.spec, check=file_ref(made.folder, made.folder / "check.npz")))
    for name in ("bomb", "claim", "object"):
        done = run("label", "v.mp4", "--bundle", name, "--runner", "openvino")
        refused(done, 1, "check clips")
    for name in names:
        not_loaded(Path(name), "check clips")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    held(peak < GIGABYTE // 2, f"the product took {peak >> 20} MiB")
    held(not marker.exists(), "an array ran its code")
    with np.load("bomb/check.npz") as arrays:  # it is a bomb: NumPy knows the arrays, and the file is small
        held(set(arrays) == {"clips", "logits"} and Path("bomb/check.npz").stat().st_size < 8 << 20, "it is no bomb")
    return f"{len(names)} files of check clips refused, with at most {peak >> 20} MiB"


if __name__ == "__main__":
    attack(mount)

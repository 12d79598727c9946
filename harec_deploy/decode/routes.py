"""Which videos DALI may decode: those of which it provably gives the frames that the reference decoder gives.

DALI names a frame by the rank of its packet's time among all packets of the stream, and pairs pictures with packets in
decode order. That is the place in display order of our packet table only where every packet shows one picture of its
own, at a time of its own that is not negative. It knows one colour matrix (BT.601), no rotation and no damage. Whatever
differs, or cannot be told from the packets, is the reference decoder's.
"""

from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from harec_deploy.decode.headers import one_picture_each, unsteady
from harec_deploy.decode.passes import Video
from harec_deploy.decode.picture import display_matrix

# MJPEG is not among the codecs that DALI gives to NVDEC. AV1 shows stored pictures again as a rule, and there the
# pictures of the GPU decoder fall behind their packets.
GPU_CODECS = frozenset(["h264", "hevc", "mpeg4", "vp8", "vp9"])
CPU_CODECS = frozenset(["vp8", "vp9", "mjpeg"])
CONTAINERS = frozenset(["mov", "matroska", "avi"])
PROFILES = {  # of codecs whose other profiles NVDEC does not decode, or not as 8-bit 4:2:0
    "h264": frozenset(["Constrained Baseline", "Main", "High"]),
    "hevc": frozenset(["Main"]),
    "mpeg4": frozenset(["Simple Profile", "Advanced Simple Profile"]),
}
GPU_SIDES = range(144, 4097)  # above the least of any codec, up to the most of H.264
CPU_SIDES = range(16, 4097)
_BT601 = frozenset([2, 5, 6])  # AVColorSpace: not tagged, bt470bg, smpte170m
_FULL_RANGE = 2  # AVColorRange


@dataclass(frozen=True, slots=True)
class Rules:
    """What one form of DALI takes; ``gpu`` tells which."""

    gpu: bool

    def refusal(self, video: Video, first: VideoFrame) -> str | None:
        """Say why DALI may not decode ``video``, whose first frame in decode order is ``first``; None if it may."""
        codec, container = video.stream.codec.canonical_name, video.container.format.name.split(",")[0]
        if codec not in (GPU_CODECS if self.gpu else CPU_CODECS):
            return f"codec {codec}"
        if container not in CONTAINERS or len(video.container.streams.video) != 1:
            return f"container {container} with {len(video.container.streams.video)} video stream(s)"
        profile = video.stream.codec_context.profile
        if self.gpu and codec in PROFILES and profile not in PROFILES[codec]:
            return f"{codec} profile {profile}"
        return self._of_the_packets(video, codec) or self._of_the_picture(first, video)

    def _of_the_packets(self, video: Video, codec: str) -> str | None:
        table = video.table
        if table.broken:
            return "the file is not complete"
        if table.packets is None:
            return "the file is large"
        if not numbered_alike(video):
            return "its frames cannot be told by number"
        packets = [bytes(packet) for packet in table.packets]
        if any(packet.has_sidedata("new_extradata") for packet in table.packets):
            return "its size or format may change"
        if self.gpu and codec == "vp9" and not one_picture_each(packets):
            return "packets with other than one picture"
        return unsteady(codec, video.stream.codec_context.extradata or b"", packets)

    def _of_the_picture(self, first: VideoFrame, video: Video) -> str | None:
        sides = GPU_SIDES if self.gpu else CPU_SIDES
        context = video.stream.codec_context
        if first.format.name not in {"yuv420p", "yuvj420p"}:
            return f"pixel format {first.format.name}"
        if first.width not in sides or first.height not in sides or first.width % 2 or first.height % 2:
            return f"{first.width}x{first.height} pixels"
        if (first.width, first.height) != (context.width, context.height):
            return "the container names another size"
        if not _upright(display_matrix(first)):
            return "rotation"
        if int(first.colorspace) not in _BT601:
            return f"colour matrix {int(first.colorspace)}"
        full = int(first.color_range) == _FULL_RANGE or first.format.name == "yuvj420p"
        if self.gpu and full:
            return "full range colours"
        return "interlaced" if first.interlaced_frame else None


def _upright(matrix: NDArray[np.int32] | None) -> bool:
    """Tell whether pictures are shown as they are stored: not turned and not mirrored."""
    return matrix is None or bool(matrix[0, 0] > 0 and matrix[1, 1] > 0 and not matrix[0, 1] and not matrix[1, 0])


def numbered_alike(video: Video) -> bool:
    """Tell whether a frame's place in our packet table is the number that DALI has for it."""
    table = video.table
    if len(table.order) != len(table.pts) or table.keys[:1].tolist() != [0] or table.order[0] != 0:
        return False  # packets that show nothing, or pictures before the first that can be decoded
    if table.timed:
        return bool(table.pts.min() >= 0) and not video.container.format.name.startswith("avi")
    # The times of an AVI count chunks, so the order of decoding must be that of showing.
    in_order = bool((np.diff(table.dts) > 0).all()) and bool(table.dts[0] >= 0)
    steady = video.stream.codec.canonical_name in {"mjpeg", "vp8"} or (
        video.stream.codec.canonical_name == "mpeg4" and not len(table.droppable)
    )
    return video.container.format.name == "avi" and in_order and steady

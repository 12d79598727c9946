"""What the coded headers promise of a whole video: one picture a packet, of one size and one format throughout.

The reference decoder takes pictures as they come. One that is told its frames by number, and its size once, is right
only where the stream keeps to both; these readers look at every packet's header and at no picture.
"""

import re
from collections.abc import Callable, Iterable, Iterator

_H264_SPS, _HEVC_SPS = 7, 33  # nal_unit_type (H.264 table 7-1, H.265 table 7-1)
_CHROMA_PROFILES = frozenset([100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135])  # H.264 7.3.2.1.1
_VOL = re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01|\Z)", re.S)  # MPEG-4 part 2: size and format


def unsteady(codec: str, extradata: bytes, packets: Iterable[bytes]) -> str | None:
    """Say how a stream of ``codec`` leaves its first size and format or holds fields; None where it is steady."""
    check = {"h264": _h264, "hevc": _hevc, "mpeg4": _mpeg4, "vp8": _vp8, "vp9": _vp9}.get(codec)
    return check(extradata, packets) if check else None


def one_picture_each(packets: Iterable[bytes]) -> bool:
    """Tell whether every VP9 packet codes exactly one picture: no hidden one beside it, none shown a second time."""
    return all(len(frames := list(_vp9_frames(data))) == 1 and not frames[0][0] & 0x08 for data in packets)


def _h264(extradata: bytes, packets: Iterable[bytes]) -> str | None:
    # avcC (ISO/IEC 14496-15, 5.3.3.1): length of lengths in byte 4, count of parameter sets in byte 5.
    if len(extradata) < 8 or extradata[0] != 1 or extradata[4] & 3 != 3 or extradata[5] & 31 != 1:
        return "its H.264 headers are not of the usual form"
    length = int.from_bytes(extradata[6:8], "big")
    if not _frames_only(extradata[8 : 8 + length]):
        return "its pictures may be single fields"
    return _new_header(extradata, packets, lambda unit: unit[0] & 31 == _H264_SPS)


def _hevc(extradata: bytes, packets: Iterable[bytes]) -> str | None:
    if len(extradata) < 23 or extradata[0] != 1 or extradata[21] & 3 != 3:  # hvcC (ISO/IEC 14496-15, 8.3.3.1)
        return "its HEVC headers are not of the usual form"
    return _new_header(extradata, packets, lambda unit: unit[0] >> 1 & 63 == _HEVC_SPS)


def _new_header(extradata: bytes, packets: Iterable[bytes], is_header: Callable[[bytes], bool]) -> str | None:
    for data in packets:
        for unit in _units(data):
            if is_header(unit) and unit not in extradata:
                return "its size or format may change"
    return None


def _units(data: bytes) -> Iterator[bytes]:
    """Yield the NAL units of a packet, each behind its length in 4 bytes; of one too long for a header, its start."""
    at = 0
    while at + 5 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 4 + min(max(length, 1), 512)]
        at += 4 + length


class _Bits:
    """Reads a bit string from its start; beyond the end are zeros."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data) + "0" * 64
        self._at = 0

    def take(self, count: int) -> int:
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)

    def golomb(self) -> int:
        """Read an Exp-Golomb code (H.264, 9.1)."""
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + (self.take(zeros) if zeros else 0)


def _frames_only(parameters: bytes) -> bool:
    """Read frame_mbs_only_flag of a sequence parameter set (H.264, 7.3.2.1.1); False where it is not reached."""
    bits = _Bits(parameters[1:128].replace(b"\0\0\3", b"\0\0"))
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.golomb()
    if profile in _CHROMA_PROFILES:
        if bits.golomb() == 3:  # chroma_format_idc
            bits.take(1)
        bits.golomb()
        bits.golomb()
        bits.take(1)
        if bits.take(1):  # scaling matrices: too long a way
            return False
    bits.golomb()
    kind = bits.golomb()  # pic_order_cnt_type
    if kind == 0:
        bits.golomb()
    elif kind == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb() & 255):
            bits.golomb()
    bits.golomb()
    bits.take(1)
    bits.golomb()
    bits.golomb()
    return bool(bits.take(1))


def _mpeg4(extradata: bytes, packets: Iterable[bytes]) -> str | None:
    layers = {layer for data in (extradata, *packets) for layer in _VOL.findall(data)}
    return "its size or format may change" if len(layers) > 1 else None


def _vp8(_: bytes, packets: Iterable[bytes]) -> str | None:
    """Compare the sizes that key frames state (RFC 6386, 9.1)."""
    sizes = {data[6:10] for data in packets if data and not data[0] & 1}
    return "its size changes" if len(sizes) > 1 else None


def _vp9(_: bytes, packets: Iterable[bytes]) -> str | None:
    """Compare the formats and sizes that key frames state; other frames may only take theirs from a reference."""
    sizes = set()
    for data in packets:
        for frame in _vp9_frames(data):
            if frame[0] & 0x30:  # profiles above 0
                return "its VP9 profile is above 0"
            if frame[0] & 0x08:  # show_existing_frame
                continue
            if not frame[0] & 0x04:  # a key frame: 3 bytes of sync code, colours in 4 bits, width and height in 16 each
                sizes.add(int.from_bytes(frame[4:9], "big") >> 4)
            elif not _vp9_inherits(frame):
                return "its size may change"
    return "its size changes" if len(sizes) > 1 else None


def _vp9_inherits(frame: bytes) -> bool:
    """Tell whether an inter frame has the size of one it refers to (VP9 bitstream specification, 6.2, 7.2)."""
    bits = _Bits(frame[:8])
    bits.take(6)
    shown, resilient = bits.take(1), bits.take(1)
    intra_only = 0 if shown else bits.take(1)
    bits.take(0 if resilient else 2)
    if intra_only:
        return False
    bits.take(8 + 3 * 4)  # refresh_frame_flags, three references
    return bool(bits.take(1) or bits.take(1) or bits.take(1))


def _vp9_frames(data: bytes) -> Iterator[bytes]:
    """Yield the frames of a packet, of which a superframe has several (VP9 bitstream specification, annex B)."""
    marker = data[-1] if data else 0
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = 2 + count * width
    if marker & 0xE0 != 0xC0 or len(data) < index or data[-index] != marker:
        if data:
            yield data
        return
    at = 0
    for place in range(count):
        begin = len(data) - index + 1 + place * width
        length = int.from_bytes(data[begin : begin + width], "little")
        if length and at < len(data) - index:
            yield data[at : at + length]
        at += length

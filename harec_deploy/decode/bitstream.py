"""What a coded packet says of itself, without decoding it: which pictures it shows.

Some packets show none. An encoder stores pictures that are only referred to (alternate references), and placeholders
where nothing changed; a packed MPEG-4 stream has two pictures in one packet and a placeholder in the next. Frames can
be told apart by their place only if those are counted as what they are.
"""

import re

_VOP = b"\0\0\1\xb6"  # starts a picture in MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.5)
_BIDIRECTIONAL = 2


def shown_pictures(codec: str, data: memoryview, macroblocks: int, *, packed: bool) -> str:
    """Return a letter for each picture that a packet of ``codec`` shows: "B" if nothing refers to it, else "P".

    Codecs whose packets hold one picture each, of whatever kind, give "P".

    macroblocks: of 16x16 pixels, in a picture. packed: whether ``is_packed`` said so of the stream.
    """
    if codec == "vp8":
        return "P" if not data or data[0] & 0x10 else ""  # show_frame (RFC 6386, 9.1)
    if codec == "vp9":
        return _vp9(data)
    if codec == "mpeg4":
        return _mpeg4(bytes(data), macroblocks, packed=packed)
    return "P"


def is_packed(header: bytes | memoryview) -> bool:
    """Tell whether user data says that two MPEG-4 pictures may share a packet; FFmpeg's decoder goes by the same."""
    return re.search(rb"DivX\d+(?:b|Build)\d+p", header) is not None


def _vp9(data: memoryview) -> str:
    """Read show_existing_frame and show_frame of the uncompressed header (VP9 bitstream specification, 6.2)."""
    if not data or data[-1] & 0xE0 == 0xC0:  # a superframe: hidden pictures and the one they are for
        return "P"
    profile = (data[0] >> 5 & 1) | (data[0] >> 3 & 2)
    rest = data[0] << (5 if profile == 3 else 4)  # show_existing_frame is the top bit of these eight
    return "P" if rest & 0x80 or rest & 0x20 else ""


def _mpeg4(data: bytes, macroblocks: int, *, packed: bool) -> str:
    """Name the coded VOPs, of at most two. One that is not coded is too short to hold a bit for each macroblock."""
    first = data.find(_VOP)
    if first < 0:
        return ""
    last = data.rfind(_VOP) if packed else first  # from the end: the second picture is the smaller one
    kinds = ""
    for start, end in ((first, last), (last, len(data))) if last > first else ((first, len(data)),):
        body = end - start - len(_VOP)
        bidirectional = body > 0 and data[start + len(_VOP)] >> 6 == _BIDIRECTIONAL
        if bidirectional or body * 8 >= macroblocks:
            kinds += "B" if bidirectional else "P"
    return kinds

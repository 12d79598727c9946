"""What a coded packet says of itself, without decoding it: how many pictures it shows.

Some packets show none. An encoder stores pictures that are only referred to (alternate references), and placeholders
where nothing changed; a packed MPEG-4 stream has two pictures in one packet and a placeholder in the next. Frames can
be told apart by their place only if those are counted as what they are.
"""

_VOP = b"\0\0\1\xb6"  # starts a picture in MPEG-4 part 2 (ISO/IEC 14496-2, 6.2.5)
_BIDIRECTIONAL = 2


def shown_pictures(codec: str, data: bytes, macroblocks: int) -> int:
    """Return how many pictures a packet of ``codec`` shows; 1 for codecs whose packets hold one each.

    macroblocks: of 16x16 pixels, in a picture.
    """
    if codec == "vp8":
        return 1 if not data or data[0] & 0x10 else 0  # show_frame (RFC 6386, 9.1)
    if codec == "vp9":
        return _vp9(data)
    if codec == "mpeg4":
        return _mpeg4(data, macroblocks)
    return 1


def _vp9(data: bytes) -> int:
    """Read show_existing_frame and show_frame of the uncompressed header (VP9 bitstream specification, 6.2)."""
    if not data or data[-1] & 0xE0 == 0xC0:  # a superframe: hidden pictures and the one they are for
        return 1
    profile = (data[0] >> 5 & 1) | (data[0] >> 3 & 2)
    rest = data[0] << (5 if profile == 3 else 4)  # show_existing_frame is the top bit of these eight
    return 1 if rest & 0x80 or rest & 0x20 else 0


def _mpeg4(data: bytes, macroblocks: int) -> int:
    """Count coded VOPs. One that is not coded is too short to hold the bit that each macroblock needs."""
    count = 0
    start = data.find(_VOP)
    while start >= 0:
        end = data.find(_VOP, start + 5)
        body = (end if end >= 0 else len(data)) - start - 4
        kind = data[start + 4] >> 6 if body > 0 else _BIDIRECTIONAL
        count += body * 8 >= macroblocks or (kind == _BIDIRECTIONAL and body > 0)
        start = end
    return count

"""Text named .mp4, which FFmpeg by itself would follow to another video or to a socket."""

import contextlib
import json
import socket
from pathlib import Path

from tests.attacks.common import attack, held, run
from tests.attacks.tiny import tiny_bundle
from tests.media import make_video

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
DASH = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
DASH += '<Representation id="0" codecs="avc1.640028"><BaseURL>{}</BaseURL></Representation></AdaptationSet>'
DASH += "</Period></MPD>"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{}\nm=video 5004 RTP/AVP 96\n"


def lures(target: str) -> dict[str, str]:
    """Return the kinds of text that make FFmpeg open ``target``."""
    return {
        "concat": f"ffconcat version 1.0\nfile '{target}'\n",
        "hls": PLAYLIST.format(target),
        "dash": DASH.format(target),
        "sdp": SDP.format(target),
    }


def mount() -> str:
    """Label a folder of such files beside a listening socket."""
    Path("in").mkdir()
    secret = make_video(Path("secret.mp4"), frames=10).absolute()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        port = server.getsockname()[1]
        targets = {"video": f"file://{secret}", "name": "../secret.mp4", "plain": str(secret)}
        targets["socket"] = f"http://127.0.0.1:{port}/segment.ts"
        for name, target in targets.items():
            for kind, text in lures(target).items():
                for suffix in ("mp4", "ts"):
                    Path(f"in/{kind}_{name}.{suffix}").write_text(text)
        Path("in/loop.mp4").write_text(PLAYLIST.format("loop.mp4"))
        make_video(Path("in/zz_good.mp4"), frames=10)
        done = run("label", "in", "--bundle", tiny_bundle(Path("bundle")).folder)
        with contextlib.suppress(BlockingIOError):
            server.accept()
            held(False, "a file made the product connect to a socket")
    rows = {row["path"]: row for row in map(json.loads, Path("labels.jsonl").read_text().splitlines()[1:])}
    held(rows.pop("in/zz_good.mp4")["status"] == "ok", f"the good video was not labelled: {done.stderr}")
    held(len(rows) == 4 * 4 * 2 + 1, f"{len(rows)} rows")
    for path, row in rows.items():
        code = (row["error"] or {}).get("code")
        held(row["label"] is None, f"{path} has the label of another video")
        held(code in ("forbidden_container", "not_video"), f"{path} was opened: {row['error']}")
    return f"{len(rows)} playlists refused, no connection, the video beside them labelled"


if __name__ == "__main__":
    attack(mount)

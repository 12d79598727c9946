"""A decoder's proof: decoders that differ from the reference by a known amount, measured by the command line."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harec_deploy
from harec_deploy.bundle import load
from harec_deploy.decode import DECODERS, Frames, Size, Timestamps
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.export.decoders import prove_decoder
from harec_deploy.export.verify import spread
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from tests.media import make_video

BRIGHTER_BY = 3


class Brighter(PyAVDecoder):
    """Every level is higher by three, as far as there is room, and AVI files are refused."""

    name = "brighter"
    version = "7"

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        if path.suffix == ".avi":
            raise VideoError("decoder_missing")
        found = super().frames(path, timestamps_s, size)
        return replace(found, pixels=np.minimum(found.pixels.astype(np.int16) + BRIGHTER_BY, 255).astype(np.uint8))


class Foreign(PyAVDecoder):
    """Gives noise that has nothing to do with the file."""

    name = "foreign"

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        found = super().frames(path, timestamps_s, size)
        noise = np.random.default_rng(len(path.name)).integers(0, 256, found.pixels.shape, dtype=np.uint8)
        return replace(found, pixels=noise)


class Nothing(PyAVDecoder):
    """Takes no video at all."""

    name = "nothing"

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        raise VideoError("decoder_missing")


@pytest.fixture(autouse=True)
def decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Brighter, Foreign, Nothing):
        monkeypatch.setitem(DECODERS, each.name, f"tests.test_verify:{each.__name__}")


def prove(bundle: Path, videos: Path, name: str, **options: Any) -> Any:
    return prove_decoder(harec_deploy.load(bundle, runner="openvino", precision="fp32"), [str(videos)], name, **options)


def command(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    names = "; ".join(f"DECODERS[{n!r}] = {DECODERS[n]!r}" for n in ("brighter", "foreign"))
    code = f"from harec_deploy.decode import DECODERS; {names}; from harec_deploy.__main__ import main; main()"
    line = [sys.executable, "-c", code, "verify", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])


def test_the_difference_is_what_was_added(bundle: Path, videos: Path) -> None:
    proof = prove(bundle, videos, "brighter")
    assert (proof.clips, proof.refused) == (3, 3)
    assert proof.max_level_difference == BRIGHTER_BY
    assert 0.9 * BRIGHTER_BY < proof.mean_level_difference <= BRIGHTER_BY
    assert 0 < proof.max_abs_dp < 0.2
    assert (proof.decoder, proof.decoder_version, proof.device) == ("brighter", "7", "cpu")
    assert load(bundle).spec.decoders == [proof]


def test_it_is_stored_once_and_changes_no_label(bundle: Path, videos: Path) -> None:
    before = load(bundle).fingerprint("onnx-fp32")
    prove(bundle, videos, "brighter")
    prove(bundle, videos, "foreign")
    again = prove(bundle, videos, "brighter", max_clips=2)
    assert again.clips + again.refused == 2
    stored = load(bundle)
    assert [each.decoder for each in stored.spec.decoders] == ["foreign", "brighter"]
    assert stored.spec.decoders[1] == again
    assert stored.fingerprint("onnx-fp32") == before


def test_other_pictures_fail(bundle: Path, videos: Path) -> None:
    proof = prove(bundle, videos, "foreign")
    assert not proof.passed
    assert proof.flipped
    assert proof.top1_agreement == 1 - len(proof.flipped) / 6
    assert proof.mean_level_difference > 20


def test_videos_that_nobody_can_decode_count_for_nothing(bundle: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    recognizer = harec_deploy.load(bundle, runner="openvino", precision="fp32")
    proof = prove_decoder(recognizer, [str(videos), str(tmp_path / "damaged.mp4")], "brighter")
    assert (proof.clips, proof.refused) == (3, 3)


def test_a_decoder_that_takes_nothing_has_no_proof(bundle: Path, videos: Path) -> None:
    with pytest.raises(UsageError, match="decoder nothing takes none of 6 videos: name others"):
        prove(bundle, videos, "nothing")
    assert load(bundle).spec.decoders == []


def test_videos_are_spread_over_all(videos: Path) -> None:
    chosen = [video.name for video in spread([str(videos)], 3)]
    assert len(chosen) == 3
    assert {Path(name).parent.name for name in chosen} == {"climb", "jump", "swim"}


class TestCommand:
    def test_what_it_says(self, bundle: Path, videos: Path) -> None:
        done = command([str(bundle), str(videos), "--decoder", "brighter", "--runner", "openvino", "--json"])
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["decoder_proof"]["clips"] == 3
        assert "brighter 7 on cpu beside pyav: 100.0% of 3 clips keep their label, 3 more left to the" in done.stderr
        assert "3 at most" in done.stderr
        shown = subprocess.run(
            [sys.executable, "-m", "harec_deploy", "inspect", str(bundle)], capture_output=True, text=True, timeout=60
        )
        assert " ".join(next(line for line in shown.stdout.splitlines() if "brighter" in line).split()).startswith(
            "│ brighter 7 │ cpu │ 3 │ 100.0% │ 3.00 │ 3 │"
        )

    def test_a_failed_proof_exits_5_and_names_clips(self, bundle: Path, videos: Path) -> None:
        done = command([str(bundle), str(videos), "--decoder", "foreign", "--runner", "openvino"])
        assert done.returncode == 5
        assert "error [proof_failed]: onnx-fp32 on openvino in " in done.stderr
        assert "decoder foreign does not give the labels of pyav: " in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        ("name", "told"),
        [("vlc", "unknown decoder 'vlc'; allowed are"), ("both", "unknown decoder 'both'; allowed are")],
    )
    def test_names_that_are_not_allowed(self, bundle: Path, videos: Path, name: str, told: str) -> None:
        done = command([str(bundle), str(videos), "--decoder", name, "--runner", "openvino"])
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1


class TestDali:
    """The real decoder, in the form that runs on a CPU."""

    @pytest.fixture
    def webm(self, tmp_path: Path) -> Path:
        folder = tmp_path / "webm"
        folder.mkdir()
        for seed in range(3):
            make_video(folder / f"{seed}.webm", codec="libvpx-vp9", frames=30, seed=seed, width=160, height=160)
        make_video(folder / "other.mp4", frames=30)
        return folder

    def label(self, bundle: Path, webm: Path) -> str:
        said: list[str] = []
        out = bundle.with_name(f"{len(list(bundle.parent.glob('*.jsonl')))}.jsonl")
        how: dict[str, Any] = {"runner": "openvino", "precision": "fp32", "device": "cpu", "announce": said.append}
        label(bundle, [str(webm)], Options(out=out, decoder="dali", workers=1, **how))
        return said[0]

    def test_labelling_says_whether_it_is_proved(self, bundle: Path, webm: Path) -> None:
        assert "; dali on cpu has no proof for this bundle: see harec-deploy verify --decoder" in self.label(
            bundle, webm
        )
        arguments = [str(bundle), str(webm), "--decoder", "dali", "--device", "cpu", "--runner", "openvino"]
        done = command([*arguments, "--precision", "fp32"])
        assert done.returncode == 0, done.stderr
        (proof,) = load(bundle).spec.decoders
        assert (proof.decoder, proof.device, proof.clips, proof.refused) == ("dali", "cpu", 3, 1)
        assert 0 < proof.mean_level_difference < 7
        assert "proof" not in self.label(bundle, webm)
        spec = json.loads((bundle / "bundle.json").read_text())
        spec["decoders"][0] |= {"passed": False, "top1_agreement": 0.5}
        (bundle / "bundle.json").write_text(json.dumps(spec))
        assert "dali on cpu failed its proof, 50.0% of labels kept" in self.label(bundle, webm)

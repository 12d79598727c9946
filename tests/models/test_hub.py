"""Weights by name or address, from a real server: what is kept was checked, and what cannot be had is told."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.files import sha256
from harec_deploy.models import ARCHITECTURES, build, hub
from harec_deploy.models.encoders import frame_encoder
from harec_deploy.models.i3d import KINETICS_CLASSIFIER, I3DResNet50
from harec_deploy.spec import HeadSpec
from tests.attacks.checkpoint import Bomb
from training.__main__ import app
from training.datasets import scan_folders, write_manifest
from training.splits import split

ARCHITECTURE = "mobilenet_v2_lstm"
SIZE = Size(width=64, height=64)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder and yield its address, at which nobody answers afterwards."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of downloads, which is not there yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under a name that carries their hash, as torchvision publishes its own."""
    path = tmp_path_factory.mktemp("published") / "w.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model("mobilenet_v2", weights=None).state_dict(), path)
    return path.rename(path.with_name(f"mobilenet_v2-{sha256(path)[:8]}.pth"))


@pytest.fixture
def kinetics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of PyTorchVideo's layout, served as the one that "kinetics400" names."""
    path = tmp_path / "server/I3D_8x8_R50.pyth"
    path.parent.mkdir()
    with serving(path.parent) as address:
        monkeypatch.setitem(hub.KINETICS400, "i3d_r50_lstm", f"{address}/{path.name}")
        yield path


def fetched(weights: str, architecture: str = ARCHITECTURE, said: list[str] | None = None) -> Path:
    return hub.local_file(weights, architecture, ([] if said is None else said).append)


def refusal(weights: str, architecture: str = ARCHITECTURE) -> str:
    with pytest.raises(UsageError) as caught:
        fetched(weights, architecture)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_training_downloads_once_and_the_bundle_names_the_file(
    weights: Path, kept: Path, videos: Path, tmp_path: Path
) -> None:
    samples, _ = split(scan_folders(videos), (0, 0.5), seed=0)
    write_manifest(tmp_path / "m.csv", samples, "test")
    options = f"--architecture {ARCHITECTURE} --frames 2 --size 64 --epochs 1 --hidden 8".split()

    def fitted(run: str) -> str:
        arguments = ["fit", str(tmp_path / "m.csv"), *options, "-o", str(tmp_path / run), "--encoder-weights", url]
        ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended.stderr

    with serving(weights.parent) as address:
        url = f"{address}/{weights.name}"
        assert f"downloading {url} to {kept}" in fitted("first")
    assert "downloading" not in fitted("second"), "the server is gone, the file is not"
    for run in ("first", "second"):
        facts = load(tmp_path / run / "bundle").spec.training
        assert (facts["encoder_weights"], facts["encoder_weights_name"]) == (url, weights.name)
        assert facts["encoder_weights_sha256"] == sha256(weights)
    assert [path.name for path in kept.iterdir()] == [weights.name]
    encoder = frame_encoder("mobilenet_v2", str(kept / weights.name))
    wanted = torch.load(weights, weights_only=True)["features.0.0.weight"]
    assert torch.equal(encoder.backbone.trunk[0][0].weight, wanted)


def test_a_file_of_another_hash_is_not_kept(weights: Path, kept: Path, tmp_path: Path) -> None:
    shutil.copy(weights, tmp_path / "w-00000000.pth")
    with serving(tmp_path) as address:
        told = refusal(f"{address}/w-00000000.pth")
    assert f"gave a file of SHA-256 {sha256(weights)[:16]}..., not 00000000...: it was not kept" in told
    assert not list(kept.iterdir())


def test_without_the_server_the_file_to_get_is_told(weights: Path, kept: Path) -> None:
    with serving(weights.parent) as address:
        pass
    told = refusal(f"{address}/{weights.name}")
    digits = sha256(weights)[:8]
    assert f"{weights.name} cannot be downloaded (<urlopen error" in told
    assert f"where there is a network get {address}/{weights.name} (SHA-256 {digits}...), and put it in {kept}" in told
    assert "or give it with --encoder-weights FILE" in told
    assert not list(kept.iterdir())


def test_a_damaged_file_in_the_cache_is_noticed(weights: Path, kept: Path) -> None:
    with serving(weights.parent) as address:
        url = f"{address}/{weights.name}"
        flip_a_bit(fetched(url))
        told = refusal(url)
        assert f"{kept / weights.name} is damaged or another file" in told
        assert f"remove it, and the next run downloads {url}" in told
        (kept / weights.name).unlink()
        assert sha256(fetched(url)) == sha256(weights)


def test_a_file_put_in_the_cache_by_hand_needs_no_network(weights: Path, kept: Path) -> None:
    kept.mkdir(parents=True)
    shutil.copy(weights, kept)
    said: list[str] = []
    assert fetched(f"https://nowhere.invalid/{weights.name}", said=said) == kept / weights.name
    assert not said


def test_imagenet_is_torchvisions_file(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{taken.getsockname()[1]}")
    told = refusal("imagenet", "i3d_r50_lstm")  # nobody listens there any more
    url = torchvision.models.ResNet50_Weights.DEFAULT.url
    assert f"get {url} (SHA-256 {url[-12:-4]}...), and put it in {kept}" in told
    (kept / Path(url).name).write_bytes(b"another file")
    assert "is damaged or another file" in refusal("imagenet", "i3d_r50_lstm")


def test_what_is_published_has_a_hash_but_for_kinetics() -> None:
    for name, architecture in ARCHITECTURES.items():
        names = hub.published(name)
        assert bool(names) == architecture.pretrained
        assert set(names) == ({"imagenet", *(["kinetics400"] if name == "i3d_r50_lstm" else [])} if names else set())
        assert not names or len(hub._published_digits(names["imagenet"])) == 8


def test_kinetics_weights_are_loaded_and_their_hash_is_told_and_noted(kinetics: Path, kept: Path) -> None:
    torch.manual_seed(0)
    state = I3DResNet50().state_dict()
    classifier = dict.fromkeys(KINETICS_CLASSIFIER, torch.zeros(1))
    torch.save({"model_state": state | classifier, "epoch": 195}, kinetics)
    digits, said = sha256(kinetics), list[str]()
    how = {"encoder_weights": "kinetics400", "say": said.append}
    model = build("i3d_r50_lstm", HeadSpec(hidden=4), 2, size=SIZE, frames=2, **how)  # type: ignore[arg-type]
    assert torch.equal(model.encoder.backbone.blocks[0].conv.weight, state["blocks.0.conv.weight"])
    assert said[1] == f"{kinetics.name}: its publisher gives no SHA-256 to check it by; it is {digits}"
    assert said[2].endswith(f"left out: {', '.join(KINETICS_CLASSIFIER)}")
    flip_a_bit(kept / kinetics.name)
    assert f"... and not {digits[:16]}...: remove it" in refusal("kinetics400", "i3d_r50_lstm")


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"half"])
def test_what_is_no_weights_is_not_kept_where_no_hash_tells(
    kinetics: Path, kept: Path, weights: Path, content: bytes
) -> None:
    kinetics.write_bytes(content if content != b"half" else weights.read_bytes()[: weights.stat().st_size // 2])
    told = refusal("kinetics400", "i3d_r50_lstm")
    assert f"gave {kinetics.stat().st_size} bytes that are no weights: it was not kept" in told
    assert not list(kept.iterdir())


def test_code_in_a_published_file_is_not_run(kept: Path, tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "marker"), tmp_path / "w.pth")
    name = f"w-{sha256(tmp_path / 'w.pth')[:8]}.pth"
    (tmp_path / "w.pth").rename(tmp_path / name)
    with serving(tmp_path) as address, pytest.raises(UsageError, match=r"asks for posix\.mkdir to be run"):
        build(ARCHITECTURE, HeadSpec(), 2, size=SIZE, encoder_weights=f"{address}/{name}")
    assert not (tmp_path / "marker").exists()


def test_a_server_that_never_answers_is_given_up(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "STALLED_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = refusal(f"http://127.0.0.1:{silent.getsockname()[1]}/w-00000000.pth")
    assert "w-00000000.pth cannot be downloaded (timed out)" in told


def test_a_cache_that_cannot_be_written_is_told(kept: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("a file, where a folder is wanted")
    with serving(weights.parent) as address:
        assert f"cannot be downloaded ([Errno 20] Not a directory: '{kept}')" in refusal(f"{address}/{weights.name}")


@pytest.mark.parametrize(
    ("weights", "architecture", "told"),
    [
        ("imagenet", "lrcn", "lrcn has no pre-trained encoder: leave --encoder-weights out"),
        ("w.pth", "convlstm", "convlstm has no pre-trained encoder"),
        ("kinetics400", "resnet50_lstm", "resnet50_lstm has no kinetics400 weights: give imagenet, an address or a"),
        ("https://host/w.pth", ARCHITECTURE, "https://host/w.pth has no SHA-256 in its file name"),
        ("https://host/w-0123456.pth", ARCHITECTURE, "has no SHA-256 in its file name to be checked by"),
        ("https://host/w-01234567", ARCHITECTURE, "as NAME-0123abcd.pth has: download it yourself and give"),
        ("http:///w-01234567.pth", ARCHITECTURE, "w-01234567.pth cannot be downloaded (<urlopen error no host given>)"),
        ("http://[/w-01234567.pth", ARCHITECTURE, "w-01234567.pth cannot be downloaded ("),
        ("http://a b/w-01234567.pth", ARCHITECTURE, "w-01234567.pth cannot be downloaded ("),
    ],
)
def test_what_cannot_be_had_is_one_line(kept: Path, weights: str, architecture: str, told: str) -> None:
    assert told in refusal(weights, architecture)


def test_a_path_is_returned_as_it_is(kept: Path) -> None:
    assert fetched("runs/w.pth") == Path("runs/w.pth")
    assert not kept.exists()

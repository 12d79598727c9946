"""What several test files share: a small real bundle and the videos it is proved on."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from harec_deploy.bundle import Bundle, file_ref, load, save
from harec_deploy.spec import BundleSpec, HeadSpec
from tests.media import make_video

# A shell that starts the tests in the background makes them ignore these, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CLASSES = ["climb", "jump", "swim"]


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is stored about this machine out of the home folder, and what lies there out of the tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short videos of each class in a class-per-folder tree, of several codecs; the names carry UCF groups."""
    root = tmp_path_factory.mktemp("videos")
    for place, label in enumerate(CLASSES):
        folder = root / label
        folder.mkdir()
        make_video(folder / f"v_{label}_g01_c01.mp4", frames=30, seed=place)
        make_video(folder / f"v_{label}_g02_c01.avi", codec="mpeg4", frames=25, seed=place + 10)
    return root


def write_bundle(
    folder: Path, *, classes: list[str] = CLASSES, videos: Path | None = None, **training: object
) -> Bundle:
    """Write an untrained lrcn bundle; with ``videos``, its logits are centred on them, so that their labels differ."""
    import torch
    from safetensors.torch import save_file

    from harec_deploy.export.verify import read_clips, reference_logits
    from harec_deploy.models import ARCHITECTURES, build

    torch.manual_seed(3)
    base = ARCHITECTURES["lrcn"]
    head = HeadSpec(hidden=16, pool="max")
    model = build("lrcn", head, len(classes), size=base.size).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(20)
    folder.mkdir(parents=True)
    weights = folder / "weights.safetensors"
    save_file(model.state_dict(), weights)
    spec = BundleSpec(
        architecture="lrcn",
        head=head,
        feature_dim=model.encoder.feature_dim,
        classes=classes,
        sampling=base.sampling,
        size=base.size,
        weights=file_ref(folder, weights),
        training=dict(training),
    )
    if videos is not None:
        logits = reference_logits(model, read_clips(spec, [str(videos)], limit=10))
        model.head.classifier.bias.data -= torch.from_numpy(logits.mean(0))
        save_file(model.state_dict(), weights)
        spec = msgspec.structs.replace(spec, weights=file_ref(folder, weights))
    return save(folder, spec)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A bundle with a proved variant. Do not write to it: take ``bundle`` for that."""
    from harec_deploy.export import export

    folder = tmp_path_factory.mktemp("exported") / "bundle"
    write_bundle(folder, videos=videos)
    export(folder, [str(videos)])
    return folder


@pytest.fixture
def bundle(tmp_path: Path, exported: Path) -> Path:
    """A copy of the exported bundle that a test may damage."""
    shutil.copytree(exported, tmp_path / "bundle")
    load(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real clips; tests that need it are skipped where it is not."""
    default = Path(__file__).parents[2] / "shared" / "clips"
    folder = Path(os.environ.get("HAREC_CLIPS", default))
    if not folder.is_dir():
        pytest.skip(f"no real clips in {folder}: set HAREC_CLIPS to a folder of them")
    return folder

"""What benchmarks compare: a recogniser that knows its clips by heart, and the loop of a notebook."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import av
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, file_ref, save
from harec_deploy.bundle import load as load_bundle
from harec_deploy.models import ARCHITECTURES, FramewiseModel, build, from_bundle
from harec_deploy.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from harec_deploy.sampling import ClipSampling, Window
from harec_deploy.spec import BundleSpec, FileRef, HeadSpec

Labels = dict[str, str]


def write_learnt(
    folder: Path,
    read: Callable[[BundleSpec], NDArray[np.uint8]] | None,
    *,
    architecture: str = "resnet50_lstm",
    hidden: int = 512,
    classes: int = 101,
    frames: int | None = None,
    device: str = "cpu",
) -> Bundle:
    """Write a bundle with a random encoder (always the same) and a head that tells clips apart, a class each.

    read: gives the clips that the bundle takes, uint8 (N, T, H, W, 3); N is at most ``classes``.
    With None nothing is learnt, where labels are not looked at.
    frames: T, where it is not that of the architecture.
    """
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base, head = ARCHITECTURES[architecture], HeadSpec(hidden=hidden)
    model = build(architecture, head, classes, size=base.size).eval()
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    spec = BundleSpec(
        architecture=architecture,
        head=head,
        feature_dim=model.encoder.feature_dim,
        classes=[f"class {number}" for number in range(classes)],
        sampling=base.sampling if frames is None else ClipSampling(frames=frames),
        size=base.size,
        weights=FileRef(path=weights.name, size=0, sha256=""),
    )
    if read is not None:
        learn_by_heart(model, read(spec), device)
    save_file({name: value.contiguous().cpu() for name, value in model.state_dict().items()}, weights)
    return save(folder, msgspec.structs.replace(spec, weights=file_ref(folder, weights)))


def learn_by_heart(model: FramewiseModel, clips: NDArray[np.uint8], device: str = "cpu") -> None:
    """Train the head until it knows each clip as a class of its own."""
    model.to(device)
    with torch.inference_mode():
        features = torch.stack([model.encoder(torch.from_numpy(clip).to(device)) for clip in clips])
    features, labels = features.clone(), torch.arange(len(features), device=device)
    optimiser = torch.optim.Adam(model.head.parameters(), 1e-3)
    for _ in range(3000):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model.head(features), labels)
        loss.backward()
        optimiser.step()
        if loss.item() < 0.02:
            return
    raise SystemExit(f"the head did not learn the clips (loss {loss.item():.2f})")


def frames_opencv(path: Path, times_of: Callable[[float], NDArray[np.float64]]) -> list[NDArray[np.uint8]]:
    """Return frames of a video at times that its header's length gives, as notebooks read them."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    count, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    wanted = (times_of(count / fps) * fps).astype(int)
    frames = []
    for place in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if place in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def frames_pyav(path: Path, times_of: Callable[[float], NDArray[np.float64]]) -> list[NDArray[np.uint8]]:
    """Return the same where OpenCV is not installed: all frames decoded one after the other by PyAV."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 25)
        wanted = (times_of((stream.frames or 1) / fps) * fps).astype(int)
        frames = []
        for place, frame in enumerate(container.decode(stream)):
            if place in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if place == wanted[-1]:
                break
        return frames


def has_opencv() -> bool:
    return find_spec("cv2") is not None


def notebook(
    bundle: Path, *, channels_last: bool = False, device: str = "cpu", half: bool = False
) -> Callable[[Sequence[Path]], Labels]:
    """Return the loop that people write: one video at a time, each frame through torchvision, eager PyTorch.

    channels_last: with the memory format that PyTorch's own guide to speed recommends, and few notebooks use.
    half: on a GPU, with float16 weights and pixels.
    """
    from torchvision import transforms

    loaded = load_bundle(bundle)
    spec, model = loaded.spec, from_bundle(loaded)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.float16 if half else torch.float32
    body, head = model.encoder.backbone.to(device, dtype, memory_format=layout), model.head.to(device, dtype)
    small = spec.architecture == "lrcn"  # whose pixels go from -1 to 1
    mean, std = ((0.5,) * 3, (0.5,) * 3) if small else (IMAGENET_MEAN, IMAGENET_STD)
    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((spec.size.height, spec.size.width)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    read = frames_opencv if has_opencv() else frames_pyav

    def run(paths: Sequence[Path]) -> Labels:
        labels = {}
        for path in paths:
            frames = read(path, lambda length_s: spec.sampling.timestamps_s(Window(0.0, length_s)))
            pixels = torch.stack([prepare(frame) for frame in frames]).to(device, dtype, memory_format=layout)
            with torch.no_grad():
                scores = torch.softmax(head(body(pixels)[None]), -1)[0]
            labels[path.name] = spec.classes[int(scores.argmax())]
        return labels

    return run

"""The loop of a notebook made fast: channels last, autocast to bf16, and with --compile torch.compile, frozen."""

import cv2
import torch
from torchvision import transforms
from trained import asked, network, places, ready, tell

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(video, spec):
    """Return the frames of a clip."""
    capture = cv2.VideoCapture(video)
    wanted = places(spec, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS))
    frames = []
    for place in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if place in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


@torch.inference_mode()
@torch.autocast("cpu", torch.bfloat16)
def main():
    bundle, spec, videos, options = asked("compile")
    encoder, head = network(bundle, memory_format=torch.channels_last)
    shape = (spec.size.height, spec.size.width)
    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize(shape),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    if "compile" in options:
        torch._inductor.config.freezing = True
        encoder = torch.compile(encoder)
        for _ in range(2):
            encoder(torch.zeros(spec.sampling.frames, 3, *shape).to(memory_format=torch.channels_last))
    ready()
    for video in videos:
        pixels = torch.stack([prepare(frame) for frame in read(video, spec)])
        scores = head(encoder(pixels.to(memory_format=torch.channels_last))[None]).float().softmax(-1)[0]
        tell(video, spec.classes, scores)


if __name__ == "__main__":
    main()

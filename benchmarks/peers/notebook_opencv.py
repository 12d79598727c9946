"""The loop of a notebook: OpenCV, torchvision's transforms, PyTorch eager; one video after the other."""

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


def main():
    bundle, spec, videos, options = asked("channels-last")
    layout = torch.channels_last if "channels-last" in options else torch.contiguous_format
    encoder, head = network(bundle, memory_format=layout)
    prepare = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.Resize((spec.size.height, spec.size.width)),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ready()
    for video in videos:
        pixels = torch.stack([prepare(frame) for frame in read(video, spec)]).to(memory_format=layout)
        with torch.inference_mode():
            scores = head(encoder(pixels)[None]).softmax(-1)[0]
        tell(video, spec.classes, scores)


if __name__ == "__main__":
    main()

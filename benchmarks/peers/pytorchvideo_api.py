"""PyTorchVideo's tutorial: EncodedVideo, a clip of the whole video, UniformTemporalSubsample, PyTorch eager.

Its transforms do not import beside current torchvision, so the one line of UniformTemporalSubsample stands here.
"""

import torch
from pytorchvideo.data.encoded_video import EncodedVideo
from torch.nn.functional import interpolate
from trained import asked, network, ready, tell

MEAN, STD = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def read(video, spec):
    """Return the frames of a clip: float32 (T, 3, H, W) of 0 to 255."""
    clip = EncodedVideo.from_path(video, decode_audio=False)
    frames = clip.get_clip(0, clip.duration)["video"]
    wanted = torch.linspace(0, frames.shape[1] - 1, spec.sampling.frames).long()
    frames = frames[:, wanted].permute(1, 0, 2, 3)
    return interpolate(frames, (spec.size.height, spec.size.width), mode="bilinear", align_corners=False)


def main():
    bundle, spec, videos, _ = asked()
    encoder, head = network(bundle, memory_format=torch.channels_last)
    ready()
    for video in videos:
        pixels = ((read(video, spec) / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            scores = head(encoder(pixels)[None]).softmax(-1)[0]
        tell(video, spec.classes, scores)


if __name__ == "__main__":
    main()

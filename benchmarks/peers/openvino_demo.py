"""The shape of OpenVINO's action recognition demo: OpenCV, an encoder and a decoder, a frame a request, many at once.

The demo's own programs read one video in a window; this is their pipeline over a list of files. As in the demo, the
encoder takes one frame, as many requests are in flight as the device says is best, and the decoder takes the features
of a whole clip. Its shapes are made fixed, which is its fastest form.
"""

import queue

import cv2
import numpy as np
import openvino
from trained import asked, places, ready, tell


def read(video, spec):
    """Yield the frames of a clip one by one: uint8 (H, W, 3)."""
    capture = cv2.VideoCapture(video)
    wanted = places(spec, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS))
    for place in range(wanted[-1] + 1):
        if not capture.grab():
            break
        if place in wanted:
            small = cv2.resize(capture.retrieve()[1], (spec.size.width, spec.size.height))
            yield cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    capture.release()


def compiled(file, shape, options):
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape(shape)
    return core.compile_model(model, "CPU", options)


def main():
    bundle, spec, videos, flags = asked("bf16")
    folder, frames = bundle / "onnx-fp32", spec.sampling.frames
    precision = {"INFERENCE_PRECISION_HINT": "bf16" if "bf16" in flags else "f32"}
    fast = {**precision, "PERFORMANCE_HINT": "THROUGHPUT"}
    encoder = compiled(folder / "encoder.onnx", [1, spec.size.height, spec.size.width, 3], fast)
    decoder = compiled(folder / "head.onnx", [1, frames, spec.feature_dim], precision)
    requests, done = openvino.AsyncInferQueue(encoder), queue.SimpleQueue()
    features = {video: [None] * frames for video in videos}

    def keep(request, of):
        video, place = of
        features[video][place] = request.get_output_tensor(0).data[0].copy()
        if all(each is not None for each in features[video]):
            done.put(video)

    def decode():
        video = done.get()
        logits = decoder([np.stack(features.pop(video))[None]])[0][0]
        scores = np.exp(logits - logits.max())
        tell(video, spec.classes, scores / scores.sum())

    requests.set_callback(keep)
    ready()
    for video in videos:
        for place, frame in enumerate(read(video, spec)):
            requests.start_async([frame[None]], (video, place))
        while not done.empty():
            decode()
    requests.wait_all()
    while features:
        decode()


if __name__ == "__main__":
    main()

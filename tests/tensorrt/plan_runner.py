"""Executes the fake's plans in ONNX Runtime, in the place of the TensorRT runner."""

import json

from harec_deploy.bundle import Bundle, Variant
from harec_deploy.devices import cuda_device
from harec_deploy.runners.onnx import OnnxRunner, _OnnxGraph


class PlanRunner(OnnxRunner):
    name = "tensorrt"
    version = "11.4.0.106"
    batch_frames = 128

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.hardware = cuda_device(device).name

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        return (variant.precision,) if variant.engine else ()

    def load(
        self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None
    ) -> dict[str, _OnnxGraph]:
        graphs = {}
        for name, file in bundle.spec.variants[variant].graphs.items():
            line, _, onnx = bundle.path(file).read_bytes().partition(b"\n")
            assert json.loads(line)["tensorrt"] == self.version
            path = bundle.path(file).with_suffix(".run.onnx")
            path.write_bytes(onnx)
            graphs[name] = self.load_file(path, threads=threads)
            path.unlink()
        return graphs

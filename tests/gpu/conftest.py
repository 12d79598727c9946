"""The rule of GPU tests: skipped where there is no GPU, and failures there with HAREC_FAIL_WITHOUT_GPU=1."""

import os
from importlib.util import find_spec

import pytest

from harec_deploy.devices import cuda_devices


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not cuda_devices():
        if os.environ.get("HAREC_FAIL_WITHOUT_GPU") == "1":
            pytest.fail("no CUDA GPU here, and HAREC_FAIL_WITHOUT_GPU is 1", pytrace=False)
        pytest.skip("no CUDA GPU here")


def need(package: str) -> None:
    """Skip a module's tests where a package is not installed; one that is there and does not work fails them."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

"""harec-deploy: train, export with proof, and label folders of video with human action recognisers.

import harec_deploy

recognizer = harec_deploy.load("bundle")
print(recognizer.label("clip.mp4").label)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harec_deploy.errors import HarecError, VideoError
    from harec_deploy.loading import load
    from harec_deploy.recognizer import Recognizer, VideoResult
    from harec_deploy.sampling import Window, Windowing
    from harec_deploy.segments import Segment

__version__ = "0.1.0"
__all__ = ["HarecError", "Recognizer", "Segment", "VideoError", "VideoResult", "Window", "Windowing", "load"]

_HOMES = {"load": "loading", "HarecError": "errors", "VideoError": "errors", "Segment": "segments"}
_HOMES |= {"Window": "sampling", "Windowing": "sampling"}


def __getattr__(name: str) -> object:
    # Public names are imported when first used, so that the command line starts without numpy.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'recognizer')}"), name)

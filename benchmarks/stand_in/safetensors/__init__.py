"""What gpu_check needs of the package safetensors, for machines that lack it and reach no network; never installed."""


class SafetensorError(Exception):
    """A file that is none of the format."""

"""Training of action recognisers; run from a checkout as ``python -m training``."""

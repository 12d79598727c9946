"""Labelling folders of videos: the run, its journal and its outputs."""

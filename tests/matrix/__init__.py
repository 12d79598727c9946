"""The test matrix: what may be wrong with inputs, disks, machines and models, and what has to come of it."""

"""How sure a share is that was counted on few samples."""


def wilson(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), which holds for few samples and near 0 and 1."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)

"""Stick figures on video: a data set that any machine can render, with labels that only the order of the frames gives.

The eight actions are four pairs, and each action is its partner played backwards: whoever sits down goes through the
poses of whoever stands up. The figure is seen from the front and is its own mirror image, so it faces nowhere, and its
place is random. The frames of a clip, taken without their order, are thus distributed alike for both actions of a pair:
a model that looks at single frames is right half the time, one that sees motion can be right every time.

An actor is a body, clothes, a background and a camera, all drawn from a seed of its own; every actor performs every
action several times, so that training and test can be split by actor. Mirroring a clip exchanges walk_left and
walk_right: do not flip these clips to augment them unless the label is exchanged too.
"""

import cmath
import itertools
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from harec_deploy.errors import UsageError
from harec_deploy.machine import cores

WIDTH, HEIGHT, FPS = 320, 240, 25
_FINE = 2  # drawn this many times larger and averaged down, for smooth edges and motion finer than a pixel
_MUXERS = {".mp4": "mp4", ".avi": "avi", ".mpg": "mpeg"}
_MARGIN = 8  # pixels of background around the picture, into which the camera pans
_Colour = tuple[int, int, int]


class Pose(NamedTuple):
    """The joints of a figure seen from the front: angles in degrees; both sides of the body do the same."""

    shoulder: float = 9.0  # upper arm, outward from hanging
    elbow: float = 5.0  # forearm, further outward
    hip: float = 6.0  # thigh, outward
    knee: float = 4.0  # shin, back inward
    crouch: float = 0.0  # thigh, towards the camera: it looks shorter
    lean: float = 0.0  # torso, towards the camera: it looks shorter, and beyond 90 the head hangs below the hips
    travel: float = 0.0  # place on the walker's path: -0.5 is its left end, 0.5 its right end


_STANDING = Pose()
_SEATED = Pose(shoulder=38, elbow=-30, hip=66, knee=62, crouch=58)
_BENT = Pose(shoulder=14, elbow=-10, lean=116)
_ARMS_UP = Pose(shoulder=152, elbow=12)


def _blend(first: Pose, second: Pose, share: float) -> Pose:
    return Pose(*(a + (b - a) * share for a, b in zip(first, second, strict=True)))


def _walk(phase: float) -> Pose:
    """Return the pose of a walker to the right, who swings arms and legs like scissors, from rest to rest."""
    swing = math.sin(2 * math.tau * phase)
    return Pose(shoulder=_STANDING.shoulder + 22 * swing, hip=_STANDING.hip - 20 * swing, travel=phase - 0.5)


# An action and its partner, and the pose at a phase of the action.
PAIRS: dict[tuple[str, str], Callable[[float], Pose]] = {
    ("walk_right", "walk_left"): _walk,
    ("sit_down", "stand_up"): partial(_blend, _STANDING, _SEATED),
    ("bend_down", "rise_up"): partial(_blend, _STANDING, _BENT),
    ("raise_arms", "lower_arms"): partial(_blend, _STANDING, _ARMS_UP),
}
ACTIONS: tuple[str, ...] = tuple(itertools.chain(*PAIRS))


def pose(action: str, phase: float) -> Pose:
    """Return the pose at ``phase`` of an action: 0 where it begins, 1 where it ends."""
    pair = next(pair for pair in PAIRS if action in pair)
    return PAIRS[pair](phase if action == pair[0] else 1 - phase)


class _Body(NamedTuple):
    """Lengths as shares of the standing height."""

    thigh: float
    shin: float
    torso: float
    upper_arm: float
    forearm: float
    head: float  # radius
    shoulders: float  # half the width; the hips are narrower
    limb: float  # thickness


@dataclass(frozen=True)
class _Actor:
    """A person before a camera; lengths in pixels of the video."""

    body: _Body
    shirt: _Colour
    trousers: _Colour
    skin: _Colour
    hair: _Colour
    scenes: tuple[Image.Image, ...]  # one background with different noise, to be shown in turn
    height: float
    ground: float  # from the picture's top to the feet
    tilt: float  # of the camera, radians
    pan: float  # of the camera, either way
    gop: int  # frames from one key frame to the next


def _colour(values: ArrayLike) -> _Colour:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue


def _scenes(rng: np.random.Generator, base: NDArray[np.float64]) -> tuple[Image.Image, ...]:
    """Return a static scene of low contrast around the colour ``base``, four times, each with other sensor noise."""
    size = width, height = (WIDTH + 2 * _MARGIN) * _FINE, (HEIGHT + 2 * _MARGIN) * _FINE
    flat = Image.new("RGB", size, _colour(base))
    draw = ImageDraw.Draw(flat)
    tints = base + rng.uniform(-15, 15, (int(rng.integers(4, 11)), 1)) + rng.uniform(-6, 6, 3)
    draw.rectangle((0, height * rng.uniform(0.6, 0.85), width, height), fill=_colour(tints[0]))  # the floor
    for tint in tints[1:]:
        x, y, wide, high = rng.uniform((0, 0, 0.03, 0.04), (1, 0.8, 0.28, 0.45)) * (size * 2)
        (draw.rectangle if rng.random() < 0.7 else draw.ellipse)((x, y, x + wide, y + high), fill=_colour(tint))
    slope = rng.uniform(-14, 14, 2)
    light = np.linspace(slope[0], -slope[0], height)[:, None] + np.linspace(slope[1], -slope[1], width)
    coarse = rng.normal(0, rng.uniform(1, 5), rng.integers(5, 30, 2)).astype(np.float32)
    texture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    scene = np.asarray(flat, dtype=np.float32) + (light + texture).astype(np.float32)[..., None]
    noise = rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(rng.uniform(1, 7))
    # Four pictures in a random order look like fresh noise and cost a frame nothing.
    noisy = (scene + np.roll(noise, int(turn), axis=0) for turn in rng.integers(0, height, 4))
    return tuple(Image.fromarray(picture.clip(0, 255).astype(np.uint8)) for picture in noisy)


@lru_cache(maxsize=2)  # a worker makes the clips of one actor after the other
def _actor(seed: int, number: int) -> _Actor:
    rng = np.random.default_rng((seed, number))
    base = rng.uniform(140, 215) + rng.uniform(-18, 18, 3)  # rooms are light and people dark: every limb shows

    def dark(colours: NDArray[np.float64]) -> _Colour:
        return _colour(min(colours.tolist(), key=sum))

    lengths = np.array([0.24, 0.23, 0.30, 0.17, 0.16, 0.075]) * rng.uniform(0.88, 1.12, 6)
    lengths /= lengths[:3].sum() + 2 * lengths[5]  # legs, torso and head make a height of 1
    height = HEIGHT * rng.uniform(0.6, 0.75)
    return _Actor(
        body=_Body(*lengths.tolist(), *rng.uniform((0.085, 0.05), (0.125, 0.08)).tolist()),
        shirt=dark(rng.uniform(0, 200, (5, 3))),
        trousers=dark(rng.uniform(0, 200, (5, 3))),
        skin=_colour(rng.uniform(60, 150) * np.array((1, 0.8, 0.66))),
        hair=_colour(rng.uniform(10, 110) * np.array((1, 0.85, 0.65))),
        scenes=_scenes(rng, base),
        height=height,
        ground=rng.uniform(max(200, 1.2 * height), 222),  # leaves room for raised arms
        tilt=math.radians(rng.uniform(-3, 3)),
        pan=rng.uniform(0, _MARGIN / 2),
        gop=int(rng.integers(12, 51)),
    )


def _hang(length: float, degrees: float) -> complex:
    """Return the way along a limb that hangs, turned outward: x grows outward from the body's middle, y upward."""
    return cmath.rect(length, math.radians(degrees - 90))


def _draw(image: Image.Image, actor: _Actor, pose: Pose, feet: complex, unit: complex) -> None:
    """Draw the figure: ``feet`` is the pixel where it meets the ground, ``unit`` its height as drawn, with the tilt."""
    draw, body = ImageDraw.Draw(image), actor.body

    def path(points: Iterable[complex]) -> list[tuple[float, float]]:
        return [(pixel.real, pixel.imag) for pixel in (feet + unit * point.conjugate() for point in points)]

    def disc(centre: complex, radius: float, colour: _Colour) -> None:
        draw.circle(path([centre])[0], radius * abs(unit), fill=colour)

    def limbs(joints: list[complex], colour: _Colour) -> None:
        for side in (joints, [-joint.conjugate() for joint in joints]):
            draw.line(path(side), fill=colour, width=round(body.limb * abs(unit)))
            for joint in side:
                disc(joint, body.limb / 2, colour)

    thigh = _hang(body.thigh, pose.hip) * math.cos(math.radians(pose.crouch))
    shin = _hang(body.shin, pose.hip - pose.knee)
    hip = complex(0.6 * body.shoulders, -(thigh + shin).imag)  # as high as the legs carry it: the feet stay down
    upright = math.cos(math.radians(pose.lean))
    shoulder = complex(body.shoulders, hip.imag + body.torso * upright)
    elbow = shoulder + _hang(body.upper_arm, pose.shoulder)
    wrist = elbow + _hang(body.forearm, pose.shoulder + pose.elbow)
    head = 1j * (shoulder.imag + body.head * upright)

    limbs([hip, hip + thigh, hip + thigh + shin], actor.trousers)
    limbs([hip, shoulder], actor.shirt)
    draw.polygon(path([hip, shoulder, -shoulder.conjugate(), -hip.conjugate()]), fill=actor.shirt)
    limbs([shoulder, elbow, wrist], actor.shirt)
    limbs([wrist], actor.skin)
    disc(head, body.head, actor.hair)
    disc(head - 0.2j * body.head, 0.8 * body.head * max(0.0, upright), actor.skin)  # the face, as far as it shows


def _phases(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the phase of every frame of a clip, float64 (frames,): rest, the action at some speed, rest."""
    last = int(rng.integers(39, 70))  # 40 to 70 frames are 1.6 to 2.8 s
    moving = last * rng.uniform(0.5, 0.8)
    phase = ((np.arange(last + 1) - (last - moving) * rng.random()) / moving).clip(0, 1)
    power = rng.uniform(1, 1.8)  # starts and stops gently, alike forwards and backwards
    return np.asarray(phase**power / (phase**power + (1 - phase) ** power), dtype=np.float64)


def render(action: str, actor: int, clip: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a clip, uint8 RGB (240, 320, 3), 25 a second; the same arguments give the same pixels."""
    who, walks = _actor(seed, actor), action.startswith("walk")
    rng = np.random.default_rng((seed, actor, ACTIONS.index(action) + 1, clip))
    phases, (gain, depth) = _phases(rng), rng.uniform(0.85, 1, 2)
    tilt, height = cmath.rect(1, who.tilt), who.height * depth  # who stands farther back looks smaller and higher up
    levels = np.arange(256) * rng.uniform(0.8, 1.1) + rng.uniform(-12, 12, (3, 1))  # the light of the hour
    table = levels.clip(0, 255).astype(int).ravel().tolist()
    room = WIDTH / 2 - (0.24 if walks else 0.5) * height  # the farthest from the middle that cuts nothing off
    path = 2 * room * rng.uniform(0.45, 0.7) if walks else 0.0
    place = rng.uniform(-1, 1) * (room - path / 2)
    pace, start = rng.uniform(0.2, 0.7, 3) * math.tau / FPS, rng.uniform(0, math.tau, 3)
    for number, phase in enumerate(phases.tolist()):
        sway, *pan = np.sin(pace * number + start).tolist()
        now = _blend(_STANDING, pose(action, phase), gain)
        now = now._replace(shoulder=now.shoulder + 2 * sway, hip=now.hip + 0.7 * sway)
        x, y = (round((_MARGIN + who.pan * (p + rng.normal(0, 0.12))) * _FINE) for p in pan)
        image = who.scenes[int(rng.integers(4))].crop((x, y, x + WIDTH * _FINE, y + HEIGHT * _FINE))
        feet = complex(place + now.travel * path, who.ground - 40 * (1 - depth) - HEIGHT / 2) * tilt
        middle = complex(WIDTH / 2 + _MARGIN, HEIGHT / 2 + _MARGIN)  # of the scene, about which the camera is tilted
        _draw(image, who, now, (middle + feet) * _FINE - complex(x, y), height * _FINE * tilt)
        yield np.asarray(image.reduce(_FINE).point(table))


def _film(path: Path, action: str, actor: int, clip: int, seed: int) -> None:
    """Render a clip and encode it as ``path``, which exists only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with av.open(str(part), "w", format=_MUXERS[path.suffix]) as container:
            if path.suffix == ".mp4":
                stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
            elif path.suffix == ".mpg":
                stream = container.add_stream("mpeg1video", rate=FPS)
                stream.bit_rate = 1_000_000
            else:
                options = {"flags": "+qscale", "global_quality": str(4 * 118)}  # quantiser 4, in FFmpeg's unit
                stream = container.add_stream("mpeg4", rate=FPS, options=options)
                stream.codec_context.codec_tag, stream.codec_context.max_b_frames = "XVID", 2
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.gop_size = _actor(seed, actor).gop
            stream.codec_context.thread_count = 1  # every core has a clip of its own
            for frame in render(action, actor, clip, seed):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def synthesize(
    out: Path,
    *,
    actors: int = 10,
    clips_per_action: int = 4,
    own_actors: bool = False,
    seed: int = 0,
    suffix: str = "",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Render the data set into ``out`` and return the sorted paths, ``<action>/v_<action>_g<actor>_c<clip>.<ext>``.

    Actors with an even number are H.264 in .mp4, the others MPEG-4 part 2 in .avi; or all have the ``suffix``, which
    may be .mpg for MPEG-1 too. Files that are already there are kept, so an interrupted run goes on where it stopped;
    other actors or another seed need another folder. ``own_actors``: every action has people of its own, as in UCF,
    where group 1 of one class is another scene than group 1 of the next. ``workers`` are processes, by default one per
    core. ``progress`` is called with the numbers of finished clips and of all clips, at the start and after every clip.

    Raises:
        UsageError: fewer than 2 actors, no clips, or a negative seed.
    """
    for name, value, least in (("actors", actors, 2), ("clips_per_action", clips_per_action, 1), ("seed", seed, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}; allowed are {least} and above")
    kinds = (suffix, suffix) if suffix else (".mp4", ".avi")
    first = {action: own_actors * actors * place for place, action in enumerate(ACTIONS)}  # of its actors
    takes = {
        out / action / f"v_{action}_g{actor:02d}_c{clip:02d}{kinds[actor % 2]}": (action, first[action] + actor, clip)
        for actor, action, clip in itertools.product(range(actors), ACTIONS, range(clips_per_action))
    }
    missing = [path for path in takes if not path.exists()]
    report, done = progress or (lambda done, total: None), len(takes) - len(missing)
    report(done, len(takes))
    # An interrupt reaches the whole process group: the workers finish their clip, the parent calls off the rest.
    count = max(1, min(workers or cores(), len(missing)))
    pool = ProcessPoolExecutor(count, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        clips = [pool.submit(_film, path, *takes[path], seed) for path in missing]
        for number, clip in enumerate(as_completed(clips), done + 1):
            clip.result()
            report(number, len(takes))
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(takes)

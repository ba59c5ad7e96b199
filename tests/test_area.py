"""The compiled resize and cv2's give the same frames."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from latent_obs import _area, frames  # users may lack _area; here its absence is a failure
from latent_obs.frames import FrameSpec, preprocess

Image = npt.NDArray[np.uint8]

# Where the compiler that built cv2 fuses a * b + c, as on ARM, exact halves may round the other way.
TOLERANCE = 0 if platform.machine() in ("x86_64", "AMD64") else 1

SIZES = [(64, 64), (65, 64), (64, 100), (100, 75), (84, 84), (96, 96), (160, 160), (210, 160), (240, 320)]
# Sizes whose means hit exact halves, and the ratios for which cv2 has paths of its own.
SIZES += [(128, 128), (64, 128), (128, 64), (128, 256), (192, 256), (480, 640), (210, 128), (150, 640)]
SIZES += [(3136, 64), (64, 3136), (1079, 1919)]


def resized(image: Image) -> Image:
    frame = np.full((*image.shape[:-3], 64, 64, 3), 77, np.uint8)
    _area.resize(image, frame)
    return frame


def images(height: int, width: int, seed: int = 0) -> Iterator[Image]:
    rng = np.random.default_rng(seed)
    shape = (height, width, 3)
    yield np.zeros(shape, np.uint8)
    yield np.full(shape, 255, np.uint8)
    yield np.ascontiguousarray(np.broadcast_to(np.linspace(0, 255, width)[:, None], shape).astype(np.uint8))
    yield np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 255, height)[:, None, None], shape).astype(np.uint8)
    )
    yield rng.integers(0, 256, shape, np.uint8)
    yield rng.integers(0, 2, shape, np.uint8) * np.uint8(255)
    yield rng.integers(100, 102, shape, np.uint8)
    three = rng.integers(0, 256, (3, width, 3), np.uint8)
    three[2, :-1] = three[1, :-1]
    yield three[rng.integers(0, 3, height)]  # neighbouring rows are alike, or but for the last pixel


def assert_equals_cv2(image: Image) -> None:
    expected = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    difference = np.abs(resized(image).astype(int) - expected).max()
    assert difference <= TOLERANCE, f"{image.shape} differs by {difference}"


def test_the_extension_was_built_and_is_used() -> None:
    assert vars(frames)["_area"] is _area


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_cv2(height: int, width: int) -> None:
    for image in images(height, width):
        assert_equals_cv2(image)


def test_equals_cv2_at_random_sizes() -> None:
    for seed, (height, width) in enumerate(np.random.default_rng(1).integers(64, 600, (60, 2))):
        for image in images(height, width, seed):
            assert_equals_cv2(image)


def test_equals_cv2_on_crops_and_flipped_rows() -> None:
    image = np.random.default_rng(2).integers(0, 256, (300, 400, 3), np.uint8)
    for top, bottom, left, right in np.random.default_rng(3).integers(0, 80, (40, 4)):
        view = image[top : 300 - bottom, left : 400 - right]
        assert_equals_cv2(view)
        assert np.array_equal(resized(view[::-1]), resized(view[::-1].copy()))
        assert np.array_equal(resized(view[::2][:64]), resized(view[::2][:64].copy()))


def test_a_batch_equals_its_images() -> None:
    batch = np.random.default_rng(4).integers(0, 256, (8, 210, 160, 3), np.uint8)
    for views in (batch, batch[::-2, 34:194], batch[:0]):
        expected = [cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA) for image in views]
        frame = resized(views).astype(int)
        assert np.abs(frame - np.array(expected).reshape(frame.shape)).max(initial=0) <= TOLERANCE


def test_writes_nothing_outside_its_output() -> None:
    image = np.random.default_rng(5).integers(0, 256, (210, 160, 3), np.uint8)
    buffer = np.full((3, 64, 64, 3), 77, np.uint8)
    _area.resize(image, buffer[1])
    assert np.array_equal(buffer[1], resized(image))
    assert (buffer[[0, 2]] == 77).all()


def test_threads_do_not_disturb_one_another() -> None:
    rng = np.random.default_rng(6)
    work = [rng.integers(0, 256, (*SIZES[n % 12], 3), np.uint8) for n in range(200)]
    expected = [resized(image) for image in work]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, pool.map(resized, work), expected))


GOOD = np.zeros((210, 160, 3), np.uint8)
READ_ONLY = np.zeros((64, 64, 3), np.uint8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("src", "message"),
    [
        (GOOD.astype(np.float32), "src must be uint8"),
        (GOOD.astype(np.int8), "src must be uint8"),
        (GOOD.astype(bool), "src must be uint8"),
        (GOOD[..., 0], "src must be uint8"),
        (GOOD[..., :2], "src must be uint8"),
        (GOOD[None, None], "src must be uint8"),
        (b"0" * 100, "src must be uint8"),
        (GOOD[:63], "at least 64x64 pixels, got 63x160"),
        (GOOD[:, :63], "at least 64x64 pixels, got 210x63"),
        (GOOD[:, :0], "at least 64x64 pixels, got 210x0"),
        (GOOD[:, ::2], "must be contiguous"),
        (GOOD[:, ::-1], "must be contiguous"),
        (GOOD[..., ::-1], "must be contiguous"),
        (np.zeros((3, 210, 160), np.uint8).transpose(1, 2, 0), "must be contiguous"),
        (np.zeros((210, 160, 4), np.uint8)[..., :3], "must be contiguous"),
        (np.broadcast_to(np.uint8(0), (210, 160, 3)), "must be contiguous"),
    ],
)
def test_refuses_what_is_no_image(src: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _area.resize(src, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("dst", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), "dst must be uint8"),
        (np.zeros((64, 63, 3), np.uint8), "dst must be uint8"),
        (np.zeros((64, 64, 4), np.uint8), "dst must be uint8"),
        (np.zeros((1, 64, 64, 3), np.uint8), "dst must be uint8"),
        (np.zeros(64 * 64 * 3, np.uint8), "dst must be uint8"),
        (np.zeros((64, 128, 3), np.uint8)[:, ::2], "contiguous"),
        (READ_ONLY, "read-only"),
    ],
)
def test_refuses_what_holds_no_frame(dst: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _area.resize(GOOD, dst)


def test_refuses_other_arguments() -> None:
    with pytest.raises(ValueError, match="with the N of src"):
        _area.resize(np.stack([GOOD, GOOD]), np.zeros((3, 64, 64, 3), np.uint8))
    with pytest.raises(TypeError, match=r"buffer|bytes-like"):
        _area.resize([[0]], np.zeros((64, 64, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        _area.resize(GOOD, bytes(64 * 64 * 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes 2 arguments, got 1"):
        _area.resize(GOOD)  # type: ignore[call-arg]


class NoCv2:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"preprocess used cv2.{name}")


@pytest.mark.parametrize("compiled", [True, False])
def test_preprocess_is_the_same_without_the_extension(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(7).integers(0, 256, (210, 160, 3), np.uint8)
    large = [image, image[34:194], image[:, ::-1], image[..., ::-1], image[:64, :64]]
    small = [image[:50], image[:, :50]]
    for view in large if compiled else large + small:
        expected = cv2.resize(np.ascontiguousarray(view), (64, 64), interpolation=cv2.INTER_AREA)
        with monkeypatch.context() as patch:
            if compiled:
                patch.setattr(frames, "cv2", NoCv2())
            else:
                patch.setattr(frames, "_area", None)
            frame = preprocess(view, FrameSpec())
        assert np.abs(frame.astype(int) - expected).max() <= TOLERANCE
        assert frame.flags.c_contiguous


def test_preprocess_leaves_small_images_to_cv2() -> None:
    image = np.random.default_rng(8).integers(0, 256, (210, 63, 3), np.uint8)
    for view in (image, image[:40], image[:63, :20]):
        expected = cv2.resize(view, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(preprocess(view, FrameSpec()), expected)

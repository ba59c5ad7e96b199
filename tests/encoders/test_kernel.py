"""The encoder in integers: the same bits in each path of the kernel, and close to its weights in float32."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs import _encode  # users may lack it; here its absence is a failure
from latent_obs.encoders import kernel, quantise
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import VAEConfig
from latent_obs.encoders.kernel import compile_kernel
from latent_obs.encoders.quantise import Quantised
from latent_obs.encoders.resolve import EncoderFolder, list_encoders, resolve
from tests.conftest import random_tensors

PATHS = _encode.paths()
Array = Any


STD = [1.0] * 8  # of eight latents, where it does not matter


def by_torch(quantised: Quantised, frames: Array) -> Array:
    """The same arithmetic in other hands: torch's convolution of float64, which holds all integers here."""
    x = torch.from_numpy(frames.astype(np.float64)).permute(0, 3, 1, 2)
    before = 3
    for i, after in enumerate(quantised.channels):
        weight = quantised.weight[i].astype(np.float64).reshape(4, 4, before, after).transpose(3, 2, 0, 1)
        bias = torch.from_numpy(quantised.bias[i].astype(np.float64))
        sums = torch.nn.functional.conv2d(x, torch.from_numpy(weight.copy()), bias, stride=2, padding=1)
        assert sums.abs().max() < 2**31
        scaled = sums.clamp(min=0).float() * torch.from_numpy(quantised.multiplier[i]).view(1, -1, 1, 1)
        most = 1023 if i == len(quantised.channels) - 1 else 255
        x, before = scaled.clamp(max=most).round().double(), after
    flat = x.permute(0, 2, 3, 1).reshape(len(frames), -1)
    totals = (flat @ torch.from_numpy(quantised.head.astype(np.float64))).numpy()
    assert np.abs(totals).max() < 2**31
    return (totals * quantised.scale + quantised.offset).astype(np.float32)


def of_encoder(found: EncoderFolder, frames: Array) -> Quantised:
    return quantise.quantise(found.config.vae, found.tensors(), frames, found.config.latents["std"])


def random_quantised(channels: tuple[int, ...], outputs: int, rng: np.random.Generator) -> Quantised:
    """Any integers, not those of an encoder, so that both limits of every layer are reached."""
    pairs = list(zip((3, *channels), channels, strict=False))
    side = 64 >> len(channels)
    features = side * side * channels[-1]
    return Quantised(
        channels,
        tuple(rng.integers(-127, 128, (16 * before, after)).astype(np.int8) for before, after in pairs),
        tuple(rng.integers(-30_000, 30_000, after).astype(np.int32) for _, after in pairs),
        tuple((rng.uniform(0.2, 2, after) / 40 / before).astype(np.float32) for before, after in pairs),
        rng.integers(-400_000 // features, 400_000 // features + 1, (features, outputs)).astype(np.int16),
        rng.uniform(1e-6, 1e-4, outputs),
        rng.normal(size=outputs),
        rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        0.0,
    )


def test_the_kernel_was_built_and_is_used() -> None:
    assert vars(kernel)["_encode"] is _encode
    assert PATHS[-1] == "plain"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("channels", "outputs"),
    [
        ((16, 32, 64), 32),
        ((32, 64, 128), 64),
        ((4, 8), 5),
        ((17,), 33),
        ((3, 5, 8, 8, 8, 8), 7),
        ((20, 48, 16, 128), 40),
        ((16, 64, 16, 32, 16), 8),
        ((8, 16, 16, 16, 64, 128), 70),
    ],
)
def test_every_path_gives_the_bits_of_the_reference(path: str, channels: Any, outputs: int) -> None:
    rng = np.random.default_rng(len(channels) * outputs)
    quantised = random_quantised(channels, outputs, rng)
    frames = rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    frames[1] = quantised.background
    frames[2], frames[3] = 0, 255
    frames[4] = quantised.background
    frames[4, 20:31, 7:10] = 90  # a ball in front of the background
    expected = by_torch(quantised, frames)
    np.testing.assert_array_equal(compile_kernel(quantised, path=path)(frames), expected)
    assert len(np.unique(expected)) > len(expected), "a test of constants tests nothing"


@pytest.mark.parametrize("path", PATHS)
def test_one_changed_pixel_changes_what_it_changes_in_the_reference(path: str) -> None:
    """Corners, edges and every phase of the strides: what is not computed again must be the background's."""
    rng = np.random.default_rng(0)
    quantised = random_quantised((16, 32, 64), 16, rng)
    places = [(y, x) for y in (0, 1, 2, 31, 32, 62, 63) for x in (0, 3, 4, 33, 59, 60, 63)]
    places += [tuple(place) for place in rng.integers(0, 64, (40, 2))]
    frames = np.repeat(quantised.background[None], len(places) + 1, 0)
    for frame, (y, x) in zip(frames, places, strict=False):
        frame[y, x, rng.integers(3)] ^= 0x80
    expected = by_torch(quantised, frames)
    encode = compile_kernel(quantised, path=path)
    np.testing.assert_array_equal(encode(frames), expected)
    alone = [encode(frame[None])[0] for frame in frames]  # little work may take another path
    np.testing.assert_array_equal(alone, expected)
    assert (expected[:-1] != expected[-1]).any(1).mean() > 0.9


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_that_share_a_network_do_not_disturb_one_another(num_threads: int) -> None:
    rng = np.random.default_rng(1)
    quantised = random_quantised((16, 32, 64), 32, rng)
    encode = compile_kernel(quantised, num_threads)
    work = [rng.integers(0, 256, (n % 30 + 1, 64, 64, 3), dtype=np.uint8) for n in range(60)]
    expected = [compile_kernel(quantised)(frames) for frames in work]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, pool.map(encode, work), expected))


@pytest.mark.parametrize("name", ["pong-v0", "general-v0"])
def test_an_encoder_in_int8_has_the_bits_of_the_reference(name: str) -> None:
    """Its mean, its posterior, and its mean normalised: the same sums each time."""
    found = resolve(name)
    frames = found.calibration()
    assert frames is not None
    both = by_torch(of_encoder(found, frames), frames)
    encode = load_encoder(name, precision="int8", normalize=False)
    np.testing.assert_array_equal(encode(frames), both[:, :32])
    mean, log_variance = encode.posterior(frames)
    np.testing.assert_array_equal(mean, both[:, :32])
    np.testing.assert_array_equal(log_variance, both[:, 32:])
    shift, scale = np.array(found.config.latents["mean"]), np.array(found.config.latents["std"])
    normalised = load_encoder(name, precision="int8", normalize=True)(frames)
    np.testing.assert_allclose(normalised, (both[:, :32] - shift) / scale, atol=1e-5)


def test_int8_latents_are_these_bits_on_every_machine() -> None:
    """Change the sum only together with VERSION in quantise.py: policies have seen the old latents."""
    found = resolve("pong-v0")
    frames = found.calibration()
    assert frames is not None
    latents = load_encoder("pong-v0", precision="int8", normalize=False)(frames)
    digest = hashlib.sha256(latents.astype("<f4").tobytes()).hexdigest()
    assert (quantise.VERSION, digest[:16]) == (6, "849afc2fcdff90e0")


def test_frames_beyond_the_range_of_the_calibration_are_encoded_too() -> None:
    """Calibrated on the same frames, but dimmed; without headroom the error is 0.17 here."""
    found = resolve("pong-v0")
    frames = found.calibration()
    assert frames is not None
    dimmed = (frames * 0.7).astype(np.uint8)
    exact = load_encoder("pong-v0", precision="float32", normalize=False)(frames)
    quantised = of_encoder(found, dimmed)
    assert quantise.parity_error(exact, compile_kernel(quantised)(frames)[:, :32], exact.std(0)) < 0.1


@pytest.mark.parametrize("name", list_encoders())
def test_other_last_bits_of_float64_give_the_same_integers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another BLAS adds up in another order; what it gets must round to the same encoder."""
    found = resolve(name)
    frames = found.calibration()
    assert frames is not None
    rng = np.random.default_rng(0)

    def disturb(of: Any, name: str, by: float) -> None:
        exact = getattr(of, name)

        def disturbed(*args: Any) -> Any:
            found = exact(*args)
            each = found if isinstance(found, list) else [found]
            changed = [x * (1 + by * rng.normal(size=x.shape)) for x in each]
            return changed if isinstance(found, list) else changed[0]

        monkeypatch.setattr(of, name, disturbed)

    monkeypatch.setattr(quantise, "HEADROOM", (1.15,))
    expected = of_encoder(found, frames).to_tensors()
    disturb(quantise, "_forward", 1e-15)
    disturb(np.linalg, "solve", 1e-13)
    disturb(np.linalg, "inv", 1e-13)
    other = of_encoder(found, frames).to_tensors()
    for key, value in expected.items():
        if key != "error":
            np.testing.assert_array_equal(other[key], value, err_msg=key)


def test_biases_are_corrected_layer_by_layer() -> None:
    """Over the frames that it was fitted to, each latent has the mean that it has in float32."""
    vae = VAEConfig(8, (8, 16, 16))
    tensors = random_tensors(vae)
    rng = np.random.default_rng(2)
    frames = np.full((64, 64, 64, 3), (90, 40, 17), np.uint8)  # one colour, whose rounding adds up
    for frame in frames:
        y, x = rng.integers(0, 50, 2)
        frame[y : y + 12, x : x + 9] = rng.integers(0, 256, 3)
    from latent_obs.vae import VAE

    tensors["mean.weight"] *= np.float32(20)
    exact = VAE.from_tensors(vae, tensors)(torch.from_numpy(frames)).detach().numpy()
    quantised = quantise.quantise(vae, tensors, frames, STD)
    latents = compile_kernel(quantised)(frames)[:, :8]
    np.testing.assert_allclose(latents.mean(0), exact.mean(0), atol=2e-5 * exact.std())


def test_last_bits_do_not_decide_how_a_weight_halfway_between_two_integers_is_rounded() -> None:
    """Weights that were stored in few bits often lie exactly there."""
    inputs = np.arange(100.0)[:, None]
    found = [
        quantise._rounded(inputs, np.array([[half + off]]), inputs * (half + off)).item()
        for half in (2.5, -3.5)
        for off in (-1e-12, 0, 1e-12)
    ]
    assert found == [2, 2, 2, -4, -4, -4]


def test_the_error_is_that_of_frames_that_were_not_fitted_to() -> None:
    """Each half of the frames in turn, without the one that is farthest off, by the deviations given."""
    found = resolve("boxing-v0")
    frames = found.calibration()
    assert frames is not None
    assert len(frames) == 64
    std = np.array(found.config.latents["std"])
    exact = load_encoder("boxing-v0", precision="float32", normalize=False)(frames)
    errors = []
    for headroom in quantise.HEADROOM:
        off = []
        for half in (0, 1):
            fitted = quantise._fit(found.config.vae, found.tensors(), frames[half::2], headroom)
            differences = compile_kernel(fitted)(frames[1 - half :: 2])[:, :32] - exact[1 - half :: 2]
            off += sorted(differences, key=lambda row: float((row**2).sum()))[:-1]
        errors.append((np.sqrt(np.square(off).mean(0)) / std).max())
    quantised = of_encoder(found, frames)
    assert quantised.error == pytest.approx(min(errors), rel=1e-3)
    larger = quantise.quantise(found.config.vae, found.tensors(), frames, list(4 * std))
    assert larger.error == pytest.approx(quantised.error / 4, rel=1e-3)


def test_weights_that_are_rounded_make_up_for_one_another() -> None:
    """About as well as the best of all ways to round each of six weights up or down."""
    rng = np.random.default_rng(0)
    found, near, best = 0.0, 0.0, 0.0
    for _ in range(20):
        inputs = np.rint(100 + 40 * rng.normal(size=(500, 3)) @ rng.normal(size=(3, 6)))  # they go together
        weights = rng.uniform(-9, 9, (6, 1))
        wanted = inputs @ weights

        def error(candidate: Array, inputs: Array = inputs, wanted: Array = wanted) -> float:
            return float((inputs @ candidate - wanted).var())

        ways = (np.floor(weights) + np.array(up)[:, None] for up in itertools.product((0, 1), repeat=6))
        best += min(map(error, ways))
        near += error(np.rint(weights))
        found += error(quantise._rounded(inputs, weights, wanted))
    assert found < 0.5 * near
    assert found < 1.2 * best


def test_repeated_frames_do_not_count_as_unseen() -> None:
    """A folder repeats its frames to fill 64 places: three of them are all there is to fit and to judge."""
    vae = VAEConfig(8, (8, 16))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    once = quantise.quantise(vae, random_tensors(vae), frames, STD).to_tensors()
    repeated = quantise.quantise(
        vae, random_tensors(vae), np.resize(frames, (64, 64, 64, 3)), STD
    ).to_tensors()
    for key, value in once.items():
        np.testing.assert_array_equal(repeated[key], value)


def test_channels_that_are_dead_or_constant_are_quantised_too() -> None:
    vae = VAEConfig(8, (8, 16))
    tensors = random_tensors(vae)
    tensors["encoder.conv0.weight"][2] = 0
    tensors["encoder.conv0.bias"][2] = 3
    tensors["encoder.conv0.weight"][3] = -np.abs(tensors["encoder.conv0.weight"][3])
    tensors["encoder.conv0.bias"][3] = -1
    tensors["encoder.conv1.weight"][4] *= np.float32(1e-12)
    tensors["encoder.conv1.bias"][4] = 2
    tensors["encoder.conv0.weight"][5] *= np.float32(1e-12)
    tensors["encoder.conv0.bias"][5] = 3.4
    tensors["mean.weight"][5] = 0
    tensors["mean.bias"][5] = 4
    frames = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    from latent_obs.vae import VAE

    exact = VAE.from_tensors(vae, tensors)(torch.from_numpy(frames)).detach().numpy()
    latents = compile_kernel(quantise.quantise(vae, tensors, frames, STD))(frames)[:, :8]
    np.testing.assert_allclose(latents, exact, atol=0.1 * exact.std(0).max())
    np.testing.assert_allclose(latents[:, 5], 4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "channels has"),
        ({"channels": (16,) * 7}, "channels has"),
        ({"channels": (16, 32, 2000)}, "channels has"),
        ({"channels": (16, 32, 32)}, "weight has"),
        ({"bias": (np.zeros(3, np.int32),)}, "bias has"),
        ({"multiplier": (np.zeros(3, np.float32),)}, "multiplier has"),
        ({"head": np.zeros((10, 32), np.int16)}, "head has"),
        ({"offset": np.zeros(3)}, "offset has"),
        ({"background": np.zeros((64, 64), np.uint8)}, "background has"),
    ],
)
def test_the_kernel_refuses_what_does_not_fit(changes: Any, message: str) -> None:
    quantised = random_quantised((16, 32, 64), 32, np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        compile_kernel(replace(quantised, **changes))
    with pytest.raises(ValueError, match='has no path "mmx"'):
        compile_kernel(quantised, path="mmx")


def test_the_kernel_writes_nothing_outside_its_output() -> None:
    quantised = random_quantised((16, 32, 64), 5, np.random.default_rng(0))
    arrays = (quantised.weight, quantised.bias, quantised.multiplier)
    weight, bias, multiplier = (np.concatenate([x.ravel() for x in each]) for each in arrays)
    rest = (quantised.head, quantised.scale, quantised.offset, quantised.background)
    network = _encode.prepare(quantised.channels, weight, bias, multiplier, *rest, "plain")
    frames, latents = np.zeros((2, 64, 64, 3), np.uint8), np.full((4, 5), 77, np.float32)
    _encode.encode(network, frames, latents[1:3])
    assert (latents[[0, 3]] == 77).all()
    assert (latents[1:3] != 77).all()
    for wrong in (latents, latents[1:2], latents[:2, :4].copy()):
        with pytest.raises(ValueError, match="frames must be"):
            _encode.encode(network, frames, wrong)
    with pytest.raises(ValueError, match="frames must be"):
        _encode.encode(network, frames.ravel()[1:], latents[1:3])
    with pytest.raises(ValueError, match=r"capsule|PyCapsule"):
        _encode.encode(None, frames, latents[1:3])

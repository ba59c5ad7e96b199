from __future__ import annotations

import numpy as np
import pytest

from latent_obs.adapter import LatentStack


def test_a_stack_holds_the_last_latents_of_its_row_oldest_first() -> None:
    """Three rows of which only some get a latent each time; the histories are kept by hand."""
    rng = np.random.default_rng(0)
    stack, history = LatentStack(3, latent_dim=2, rows=3), {row: [] for row in range(3)}  # type: ignore[var-annotated]
    for step in range(30):
        rows = rng.permutation(3)[: rng.integers(1, 4)]
        latents = rng.normal(size=(len(rows), 2)).astype(np.float32)
        if step % 7 == 3:
            stack.begin([1])
            history[1] = []
        found = stack.push(latents, rows)
        for row, latent in zip(rows, latents, strict=True):
            history[row] = [*history[row], latent] if history[row] else [latent] * 3
        for flat, row in zip(found, rows, strict=True):
            np.testing.assert_array_equal(flat, np.concatenate(history[row][-3:]))
    for row in range(3):
        np.testing.assert_array_equal(stack.read([row])[0], np.concatenate(history[row][-3:]))


def test_what_a_stack_returns_never_changes() -> None:
    stack = LatentStack(2, latent_dim=1)
    first = stack.push(np.array([[1]], np.float32))
    read = stack.read()
    stack.push(np.array([[2]], np.float32))
    assert first.tolist() == read.tolist() == [[1, 1]]
    assert stack.read().tolist() == [[1, 2]]


@pytest.mark.parametrize("size", [1, 3])
def test_a_stack_goes_on_from_a_flat_observation(size: int) -> None:
    stack = LatentStack(size, latent_dim=2, rows=2)
    stack.resume(1, np.arange(2 * size, dtype=np.float32))
    found = stack.push(np.full((2, 2), 9, np.float32))
    assert found[0].tolist() == [9] * 2 * size
    assert found[1].tolist() == [*range(2, 2 * size), 9, 9]

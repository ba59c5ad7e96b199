from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from latent_obs.training.pace import Pace

# Seconds of a step with so many threads.
IDLE = {1: 0.04, 2: 0.025, 4: 0.02, 8: 0.03}
BUSY = {1: 0.1, 2: 1.0, 4: 2.0, 8: 4.0}
Costs = Callable[[float], dict[int, float]]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock that a run's steps move, by what they cost at that time with PyTorch's threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, costs: Costs, seconds: float, most: int) -> None:
        self.now, self.end, self.step, self.total, self.costs = 0.0, seconds, 0, 10**9, costs
        self.plans: list[tuple[int, float]] = []
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.pace = Pace(self.plan, most)

    def plan(self, rate: float, taken: int) -> int:
        self.plans.append((taken, rate))
        return max(10, int((self.end - self.now) * rate))

    def run(self) -> list[int]:
        """Take all steps; return with how many threads each was taken."""
        with_threads = []
        while self.step < self.total:
            with_threads.append(torch.get_num_threads())
            self.now += self.costs(self.now)[torch.get_num_threads()]
            self.step += 1
            if (more := self.pace.after(self.step)) is not None:
                self.total = self.step + more
        return with_threads


@pytest.mark.parametrize(("costs", "most", "best"), [(IDLE, 2, 2), (IDLE, 8, 4), (IDLE, 1, 1), (BUSY, 8, 1)])
def test_a_run_ends_in_time_with_as_many_threads_as_are_fastest(
    monkeypatch: pytest.MonkeyPatch, costs: dict[int, float], most: int, best: int
) -> None:
    machine = Machine(monkeypatch, lambda _: costs, 60, most)
    threads = machine.run()
    assert threads[-1] == best
    assert machine.now == pytest.approx(60, abs=5 * costs[best])
    assert threads.count(best) > 0.85 * 60 / costs[best]
    assert machine.plans[0][1] == pytest.approx(1 / costs[best])


def test_a_machine_that_gets_busy_or_idle_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda now: BUSY if 40 < now < 120 else IDLE, 240, 2)
    threads = machine.run()
    assert machine.now == pytest.approx(240, abs=1)
    assert threads[400] == 2
    assert 1 in threads[1200:1800]
    assert threads[-200:].count(2) > 190


def test_the_pace_is_taken_again_after_each_quarter_until_few_steps_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, lambda _: {1: 0.1}, 50, 1)
    machine.run()
    first = 5 + 10
    left = 500 - first
    assert machine.plans[0][1] == pytest.approx(10)
    assert [taken for taken, _ in machine.plans[:3]] == [
        first,
        first + left // 4,
        first + left // 4 + (left - left // 4) // 4,
    ]
    assert 500 - machine.plans[-1][0] < 80
    assert machine.step == pytest.approx(500, abs=2)

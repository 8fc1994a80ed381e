"""Progress is for a terminal, and passes the items through."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import Progress, TaskID
from technique_networks import simulator

from isobit.quantsim.passes.progress import track
from isobit.techniques import AdaRound
from isobit.testing.networks.convolutional import conv_net


@pytest.mark.parametrize("show", [None, False, True])
def test_items_pass_through(show: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading", 3, show=show)) == ["a", "b", "c"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert bool(printed.err) == bool(show)


def test_items_are_taken_one_by_one() -> None:
    taken = []

    def items() -> object:
        for index in range(3):
            taken.append(index)
            yield index

    stream = track(items(), "reading", show=False)  # type: ignore[arg-type]
    next(stream)
    assert taken == [0]


def test_work_between_passes_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are solved, schemes that are compared, and which layers a pass of many is for."""
    bars: list[str] = []
    add_task = Progress.add_task

    def kept(progress: Progress, description: str, **settings: Any) -> TaskID:
        bars.append(description)
        return add_task(progress, description, **settings)

    monkeypatch.setattr(Progress, "add_task", kept)
    network = conv_net()
    sim, data = simulator(network), [network.batch(8, seed) for seed in range(2)]
    sim.apply(AdaRound(), data=data, progress=True)
    sim.calibrate(data, "auto", progress=True)
    assert bars == ["AdaRound", "AdaRound", "AdaRound, layers", "calibrating", "comparing schemes"]
    bars.clear()
    sim = simulator(network)
    sim.apply(AdaRound(sequential=True), data=data, progress=True)
    assert bars[-2:] == ["AdaRound, after 1 of 3 layers", "AdaRound, after 2 of 3 layers"]
    bars.clear()
    sim.calibrate(data, "auto", progress=False)
    assert not bars

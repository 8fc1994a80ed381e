"""Which grids of a plan are learned, with what factor, and where their parameters lead."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from isobit.encodings import Encoding, LearnedGrid, QuantSpec
from isobit.encodings.learned_grid import LOG_BOUND, gradients, learned_encoding
from isobit.errors import FormatError
from isobit.graph import Tensor, Weight
from isobit.placement import Placement, Plan
from isobit.training import TrainingModes, learned_grids

UINT8, INT4 = QuantSpec.parse("uint8"), QuantSpec.parse("int4 per-channel")
X, Y, Z, P, W, B = Tensor("x"), Tensor("y"), Tensor("z"), Tensor("p"), Weight("w"), Weight("b")
GRAPH = SimpleNamespace(
    nodes=(),
    tensors={name: SimpleNamespace(shape=(None, 8, 5, "time")) for name in "xyzp"},
    weights={"w": SimpleNamespace(shape=(2, 8, 3)), "b": SimpleNamespace(shape=(2,))},
)
PLAN = Plan(
    {
        placement.site: placement
        for placement in (
            Placement(X, UINT8, "activation", "x", "x"),
            Placement(Y, UINT8, "activation", "y", "yz"),
            Placement(Z, UINT8, "activation", "z", "yz"),
            Placement(P, UINT8, "activation", "p", "p", fixed_range=(0.0, 1.0)),
            Placement(W, INT4, "weight"),
            Placement(B, QuantSpec.parse("int32 per-channel"), "bias", scale_of=(X, W)),
        )
    }
)
SCALES = np.array([0.5, 0.001], np.float32)
ENCODINGS = {
    X: Encoding.of("uint8", 0.1, 3),
    Y: Encoding.of("uint8", 0.2),
    Z: Encoding.of("uint8", 0.2),
    P: Encoding.of("uint8", 1 / 255),
    W: Encoding.of(INT4, SCALES, 0, axis=0),
    B: Encoding.of("int32 per-channel", np.float32(0.1) * SCALES, 0, axis=0),
}


def test_what_is_learned() -> None:
    """One grid for what is tied; biases follow, and known ranges stay."""
    grids = learned_grids(GRAPH, PLAN, ENCODINGS, TrainingModes())
    assert grids.keys() == {X, Y, W}
    assert grids[X].zero_point_levels == 16
    assert grids[Y].zero_point_levels == 0  # its range ends at 0
    assert grids[X].unit == 1 / 16
    assert grids[W].unit == 1
    step = 1 / np.sqrt(24 * 7)  # of LSQ: 24 weights a channel, at most 7 levels
    np.testing.assert_allclose(grids[W].factor, [step / 0.25, 1])  # the other would be amplified
    np.testing.assert_allclose(grids[X].factor, min(16 / np.sqrt(40 * 255) / 0.01, 1))
    record = json.loads(json.dumps(grids[W].to_record()))
    again = LearnedGrid.from_record(record)
    np.testing.assert_array_equal(again.factor, grids[W].factor)
    assert (again.unit, again.rounding, again.zero_point_levels) == (1, True, 0)


def test_modes_of_sites() -> None:
    def chosen(*arguments: object, frozen: tuple[Tensor, ...] = (), **settings: object) -> dict[str, bool]:
        modes = TrainingModes(*arguments, **settings)
        return {str(s): g.rounding for s, g in learned_grids(GRAPH, PLAN, ENCODINGS, modes, frozen).items()}

    assert chosen("frozen") == {}
    assert chosen("pact", weights="learned") == {"x": False, "y": False, "w": True}
    assert chosen(overrides={"*": "frozen", "x": "pact"}) == {"x": False}
    assert chosen(overrides={"z": "frozen"}) == {"x": True, "w": True}  # y is tied to it
    assert chosen(overrides={"z": "pact"}) == {"x": True, "y": False, "w": True}  # whichever of them is named
    assert chosen(overrides={"*": "frozen", "z": "pact"}) == {"y": False}
    assert chosen(overrides={"y": "frozen", "z": "pact"}) == {"x": True, "y": False, "w": True}
    assert chosen(frozen=(Z,)) == {"x": True, "w": True}
    with pytest.raises(FormatError, match="known are learned, pact, frozen"):
        TrainingModes(weights="lsq")
    with pytest.raises(FormatError, match="reaches no quantized tensor"):
        TrainingModes(overrides={"head*": "frozen"}).check(GRAPH, PLAN)
    TrainingModes(overrides={"w": "frozen"}).check(GRAPH, PLAN)


def test_parameters_lead_to_grids() -> None:
    start, grid = ENCODINGS[X], LearnedGrid(np.float32(1), unit=0.5, zero_point_levels=16)
    assert learned_encoding(start, grid, 0) == start
    np.testing.assert_allclose(learned_encoding(start, grid, 2 * np.log(2)).scale, 0.2, rtol=1e-6)
    assert learned_encoding(start, grid, 0, 0.5).zero_point == 11
    assert learned_encoding(start, grid, 0, -9).zero_point == 0
    for far in (-1e30, 1e30):
        np.testing.assert_allclose(learned_encoding(start, grid, far).scale, 0.1 * np.exp(np.sign(far) * LOG_BOUND))


def test_gradients_by_hand() -> None:
    encoding = Encoding.of("int4", 0.5)
    by_x, by_scale, by_zero = gradients([-9.0, -1.3, 0.2, 9.0], [1, 1, 1, 2], encoding)
    np.testing.assert_allclose(by_x, [0, 1, 1, 0])
    np.testing.assert_allclose(by_scale, [-8, -3 + 2.6, 0 - 0.4, 14])
    np.testing.assert_allclose(by_zero, [-0.5, 0, 0, -1])
    np.testing.assert_allclose(gradients([0.2, 9.0], [1, 1], encoding, rounding=False)[1], [0, 7])

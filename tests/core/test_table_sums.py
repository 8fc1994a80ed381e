"""Tables whose rows are added up: what is read of a small one, and how a larger one makes up for its mean error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_backend import checked

from isobit.graph import Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import GPTQ, AdaRound, SequentialMse
from isobit.techniques.rounding.tables.table_sums import read_shares
from isobit.testing.networks import NetworkBuilder

WORDS, KINDS, COLUMNS = 40, 3, 16
RNG = np.random.default_rng(1)
DATA = {
    "words": RNG.integers(0, WORDS, (64, 5)),
    "kinds": RNG.choice(KINDS, (64, 5), p=[0.9, 0.0, 0.1]),
}


def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    words, kinds = (rng.standard_normal((rows, COLUMNS)).astype(np.float32) for rows in (WORDS, KINDS))
    return words, kinds * 4


def simulator(*, other_reader: bool = False) -> QuantSim:
    b = NetworkBuilder("embeddings", 0)
    words, kinds = b.input("words", 5, dtype="int64"), b.input("kinds", 5, dtype="int64")
    looked_up = [
        b.op("Gather", f"look_{name}", b.weight(name, values), index, axis=0)
        for name, values, index in zip(("word_table", "kind_table"), tables(), (words, kinds), strict=True)
    ]
    added = b.op("Add", "add", *looked_up)
    b.output("y", b.linear("fc", added, 4))
    if other_reader:
        b.output("z", b.op("Relu", "relu", looked_up[1]))
    network = b.build()
    config = QuantConfig("int4 block=8", None, {}, ())
    return QuantSim.of_backend_model(checked(network.graph, network.weights), registry().target("default"), config)


def sums(word_table: np.ndarray, kind_table: np.ndarray) -> np.ndarray:
    return word_table.astype(np.float64)[DATA["words"]] + kind_table[DATA["kinds"]]


TECHNIQUES = [SequentialMse(), GPTQ(), AdaRound(), AdaRound(sequential=True)]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_larger_table_takes_the_mean_error_of_the_smaller_one(technique) -> None:
    words, kinds = tables()
    sim = simulator()
    sim.apply(technique, data=DATA)
    sim.calibrate(DATA)
    written = {name: sim.backend_model.weight(name) for name in ("word_table", "kind_table")}
    for name, values in written.items():
        np.testing.assert_array_equal(sim.encodings[Weight(name)].fake_quantize(values), values)
    # what a loop over the data says of the mean error, and the nearest values to the words without it
    error = np.mean([written["kind_table"][kind] - kinds[kind].astype(np.float64) for kind in DATA["kinds"].flat], 0)
    wanted = (words - error).astype(np.float32)
    expected = sim.encodings[Weight("word_table")].fake_quantize(wanted)
    assert np.mean(written["word_table"] != expected) < 0.01  # a value in the middle may go either way
    plain = sums(sim.encodings[Weight("word_table")].fake_quantize(words), written["kind_table"])
    found, exact = sums(**written), sums(words, kinds)
    assert np.square(found - exact).mean() < 0.75 * np.square(plain - exact).mean()


def test_a_lookup_that_something_else_reads_is_no_part_of_the_sum() -> None:
    sim = simulator(other_reader=True)
    sim.apply(AdaRound(), data=DATA)
    for name, values in zip(("word_table", "kind_table"), tables(), strict=True):
        np.testing.assert_array_equal(sim.backend_model.weight(name), values)


def test_minmax_scales_leave_tables_alone() -> None:
    sim = simulator()
    sim.apply(AdaRound(scales="minmax"), data=DATA)
    np.testing.assert_array_equal(sim.backend_model.weight("word_table"), tables()[0])


def test_shares_are_those_of_the_rows_that_were_read() -> None:
    _, kinds = tables()
    counted = np.bincount(DATA["kinds"].ravel(), minlength=KINDS) / DATA["kinds"].size
    shares = read_shares(kinds, kinds.astype(np.float64)[DATA["kinds"].ravel()].mean(0))
    assert shares == pytest.approx(counted, abs=1e-6)


def test_a_mean_that_the_rows_do_not_explain_tells_nothing() -> None:
    _, kinds = tables()
    assert read_shares(kinds, np.ones(COLUMNS)) is None
    assert read_shares(kinds, np.ones(3)) is None
    assert read_shares(np.repeat(kinds[:1], 2, axis=0), kinds[0].astype(np.float64)) is None  # which of the two?
    assert read_shares(kinds, 2 * kinds[0].astype(np.float64) - kinds[1]) is None

"""Pages: what is drawn of values, every kind of section is known to the script, and texts cannot break out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from technique_networks import chain, simulator

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import ModelError
from isobit.html_report import Column, Curve, DrawnValues, Section, cards, curve, notes, page_text, table
from isobit.statistics.histogram import Histogram


def _inside(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_ranges_on_the_grid_are_those_of_rounded_values() -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    spec = QuantSpec.parse("int4 symmetric")
    encoding = Encoding(spec, np.float32(0.3), np.int64(0))
    whole = DrawnValues.of(values, encoding, 1)
    rounded = np.clip(np.round(values / np.float32(0.3)), -8, 7) * np.float32(0.3)
    expected = [(rounded[:, i].min(), rounded[:, i].max()) for i in range(3)]
    np.testing.assert_allclose(whole.ranges_on_grid, expected, rtol=1e-4)
    ends = DrawnValues().with_ranges(values.min((0, 2)), values.max((0, 2)), encoding)
    np.testing.assert_allclose(ends.ranges_on_grid, whole.ranges_on_grid, rtol=1e-4)
    np.testing.assert_allclose(ends.channel_ranges, whole.channel_ranges, rtol=1e-4)


def test_counted_values_are_drawn_where_they_lie() -> None:
    """Bins of a statistic are wide as its values are large; drawn ones are alike, and hold as many values."""
    values = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    histogram = Histogram(None)
    histogram.update(values.reshape(1, -1))
    encoding = Encoding(QuantSpec.parse("uint8"), np.float32(8 / 255), np.int64(128))
    exact, drawn = DrawnValues.of(values, encoding, None), DrawnValues.of_histogram(histogram, encoding)
    assert exact.histogram is not None
    assert drawn.histogram is not None
    assert sum(drawn.histogram.counts) == pytest.approx(20_000, abs=48)
    assert np.abs(np.cumsum(drawn.histogram.counts) - np.cumsum(exact.histogram.counts)).max() < 200


def test_a_page_has_all_kinds_of_sections_and_no_text_ends_its_element() -> None:
    nasty = "</script><b>&"
    page = page_text(
        nasty,
        nasty,
        [
            cards({nasty: "1"}),
            table("t", [Column(nasty, "name")], [((nasty, float("nan")),)]),
            curve("c", nasty, "x", "y", [Curve("k", [(1.0, float("inf"), "out"), (2.0, 3.0, "in")], chosen=1)]),
            notes("n", [nasty]),
            Section("advice", "", {"items": [], "none": "nothing", "together": ""}),
        ],
    )
    assert page.count("</script>") == 2
    assert "<b>" not in page
    data = _inside(page)
    assert data["title"] == nasty
    assert data["sections"][1]["content"]["rows"] == [[[nasty, None]]]
    points = data["sections"][2]["content"]["series"][0]["points"]
    assert [(point["x"], point["chosen"]) for point in points] == [(2.0, True)]


def test_a_tensor_and_a_weight_are_plotted(tmp_path: Path) -> None:
    network = chain(0)
    sim = simulator(network)
    with pytest.raises(ModelError, match="calibrate"):
        sim.plot(next(iter(sim.graph.weights)))
    batch = network.batch(4)
    sim.calibrate([batch])
    for site in list(sim.plan.placements)[:6]:
        plot = sim.plot(str(site))
        assert plot.drawn.histogram is not None, site
        assert plot.drawn.histogram.low <= plot.seen[0] + 1e-4
        assert plot.grid == (float(sim.encodings[site].minimum.min()), float(sim.encodings[site].maximum.max()))
    plot.to_html(tmp_path / "plot.html")
    assert _inside((tmp_path / "plot.html").read_text("utf-8"))["sections"][0]["kind"] == "plot"
    assert "<script" not in plot._repr_html_()  # all of it in the attribute of a frame
    with pytest.raises(ModelError, match="did you mean"):
        sim.plot(str(site) + "x")

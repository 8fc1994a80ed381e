"""Part 3: observation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Input, Tensor
from isobit.statistics.channel_means import ChannelMeans
from isobit.statistics.channel_moments import ChannelMoments
from isobit.statistics.histogram import Histogram
from isobit.statistics.min_max import MinMax
from isobit.statistics.moments import Moments
from isobit.statistics.observer import Request
from isobit.testing import interpreter
from isobit.testing.collecting import Collect
from isobit.testing.conformance.base import ConformanceBase, Opened


class ObservingConformance(ConformanceBase):
    """Reducing tensors as they are produced."""

    def test_every_tensor_can_be_observed(self, opened: Opened) -> None:
        """The values and channel axis of each tensor of the graph, in canonical layout."""
        model, batch = opened.model, opened.network.batch(3)
        expected = interpreter.interpret(model.graph, model.weight, batch)
        collected = {name: Collect() for name in model.graph.tensors}
        model.observe([batch], [Request(Tensor(name), collect) for name, collect in collected.items()])
        for name, collect in collected.items():
            scale = max(1.0, float(np.abs(expected[name]).max()))
            np.testing.assert_allclose(collect.values, expected[name], rtol=0, atol=1e-4 * scale, err_msg=name)
            assert collect.channel_axes == [model.graph.tensors[name].channel_axis]

    def test_reduced_where_they_are(self, differing: Opened) -> None:
        """A backend's own reduction equals the core's on the whole tensors, to the last count."""
        model = differing.model
        batches = [differing.network.batch(size, seed=size) for size in (1, 3, 2)]
        names = list(model.graph.tensors)
        collected = {name: Collect() for name in names}
        histograms = {name: Histogram(limit=64) for name in names}
        bounds = {name: MinMax() for name in names}
        moments = {name: Moments() for name in names}
        means = {name: ChannelMeans() for name in names}
        channels = {name: ChannelMoments() for name in names}
        requests = [
            Request(Tensor(name), observer[name])
            for observer in (collected, histograms, bounds, moments, means, channels)
            for name in names
        ]
        model.observe(batches, requests)
        for name in names:
            axis = model.graph.tensors[name].channel_axis
            histogram, minmax, moment, whole = Histogram(limit=64), MinMax(), Moments(), ChannelMoments()
            for values in collected[name].batches:
                for observer in (histogram, minmax, moment, whole):
                    observer.update(values, axis)
            assert histograms[name] == histogram, name
            assert bounds[name].batches == minmax.batches, name
            np.testing.assert_allclose(moments[name].mean, moment.mean, rtol=1e-6, atol=1e-7)
            assert means[name].count == moments[name].count, name
            size = max(1e-3, float(np.sqrt(moment.variance + np.square(moment.mean)).max()))
            np.testing.assert_allclose(means[name].mean, moment.mean, rtol=1e-5, atol=1e-5 * size, err_msg=name)
            seen = channels[name]
            assert seen.count == whole.count, name
            np.testing.assert_array_equal(seen.minimum, whole.minimum, err_msg=name)
            np.testing.assert_array_equal(seen.maximum, whole.maximum, err_msg=name)
            np.testing.assert_allclose(seen.mean, whole.mean, rtol=1e-5, atol=1e-5 * size, err_msg=name)
            squares = whole.mean_square()
            np.testing.assert_allclose(seen.mean_square(), squares, rtol=1e-5, atol=1e-5 * size**2, err_msg=name)

    def test_batching_does_not_matter(self, open_network: Callable[[str], Opened]) -> None:
        """The histogram of the input is the same however the data is cut, and in whatever order it comes."""
        opened = open_network("conv_net")
        data = opened.network.batch(12)["image"]
        histograms = []
        for cuts in ([12], [1] * 12, [5, 4, 3]):
            histogram = Histogram(limit=100)
            parts = np.split(data, np.cumsum(cuts)[:-1])
            batches = [{"image": part} for part in parts]
            opened.model.observe(batches[::-1], [Request(Tensor("image"), histogram)])
            histograms.append(histogram)
        assert histograms[0] == histograms[1] == histograms[2]

    def test_before_and_after_the_quantizer(self, open_network: Callable[[str], Opened]) -> None:
        """`stage` chooses the float value or the rounded one, at a tensor and at one of its readers."""
        model = open_network("two_inputs").model
        encoding = Encoding.of("int4", 0.25)
        reader = model.graph.uses("left")[0].node.name
        batch = open_network("two_inputs").network.batch(5)
        model.set_quantizers({Tensor("left"): encoding})
        before, after, read = Collect(), Collect(), Collect()
        requests = [
            Request(Tensor("left"), before, "before"),
            Request(Tensor("left"), after, "after"),
            Request(Input(reader, 0), read, "after"),
        ]
        model.observe([batch], requests)
        np.testing.assert_array_equal(before.values, batch["left"])
        np.testing.assert_array_equal(after.values, encoding.fake_quantize(batch["left"]))
        np.testing.assert_array_equal(read.values, after.values)

    def test_the_rounding_of_one_reader_is_not_that_of_the_tensor(self, open_network: Callable[[str], Opened]) -> None:
        """A tensor and the input of one of its readers are rounded each to its own grid, however they are observed."""
        opened = open_network("residual")
        coarse, fine = Encoding.of("uint8", 0.25), Encoding.of("uint8", 0.25 / 255)
        add = next(node for node in opened.model.graph.nodes if node.op == "Add")
        shared = add.inputs[1] or ""  # a convolution reads it too
        tensor, reader_input = Tensor(shared), Input(add.name, 1)
        assert len(opened.model.graph.uses(shared)) == 2
        opened.model.set_quantizers({reader_input: fine, tensor: coarse})
        before, after, read = Collect(), Collect(), Collect()
        ends, read_ends = MinMax(), MinMax()
        requests = [
            Request(tensor, before),
            Request(tensor, after, "after"),
            Request(reader_input, read, "after"),
            Request(tensor, ends, "after"),
            Request(reader_input, read_ends, "after"),
        ]
        opened.model.observe([opened.network.batch(4)], requests)
        assert before.values.max() > 0.25
        np.testing.assert_array_equal(after.values, coarse.fake_quantize(before.values))
        np.testing.assert_array_equal(read.values, fine.fake_quantize(before.values))
        assert ends.batches[0][1] == after.values.max()
        assert read_ends.batches[0][1] == read.values.max()

    def test_output_tensors_before_their_quantizer(self, open_network: Callable[[str], Opened]) -> None:
        """Also a tensor that leaves the model has a float value in front of its quantizer."""
        opened = open_network("conv_net")
        model, batch = opened.model, opened.network.batch(4)
        tensor = model.graph.outputs["logits"]
        plain = model.run(batch)["logits"]
        encoding = Encoding.of("int4", 0.5)
        model.set_quantizers({Tensor(tensor): encoding})
        before = Collect()
        model.observe([batch], [Request(Tensor(tensor), before, "before")])
        np.testing.assert_array_equal(before.values, plain)
        np.testing.assert_array_equal(model.run(batch)["logits"], encoding.fake_quantize(plain))

    def test_nan_is_counted(self, open_network: Callable[[str], Opened]) -> None:
        """NaN and infinity that reach a tensor are counted there and do not enter minimum and maximum."""
        opened = open_network("shared_weights")
        batch = opened.network.batch(4)
        batch["x"][1, 2] = np.nan
        batch["x"][2, 3] = np.inf
        histogram = Histogram()
        opened.model.observe([batch], [Request(Tensor("x"), histogram)])
        finite = batch["x"][np.isfinite(batch["x"])]
        assert histogram.non_finite == 2
        assert (histogram.minimum, histogram.maximum) == (finite.min(), finite.max())

    def test_data_is_taken_as_it_comes(self, open_network: Callable[[str], Opened]) -> None:
        """A generator is consumed batch by batch, not drawn into a list first."""
        opened = open_network("shared_weights")
        histogram = Histogram()
        elements_before: list[int] = []

        def batches() -> object:
            for index in range(4):
                elements_before.append(histogram.elements)
                yield opened.network.batch(2, seed=index)

        opened.model.observe(batches(), [Request(Tensor("x"), histogram)])  # type: ignore[arg-type]
        assert elements_before == [0, 16, 32, 48]

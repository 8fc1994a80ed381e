"""Part 2: quantizers. Bits, weights, switching, reading back, single readers, errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerBlock, PerChannel, QuantSpec
from isobit.encodings.ranges import encode_weight
from isobit.errors import IsobitError
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.statistics.observer import Request
from isobit.testing.collecting import Collect
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_close, assert_same, weight_names

_FORMATS = [
    f"{kind}{bits}{symmetry}"
    for bits in (2, 3, 4, 8, 9, 16)
    for kind, symmetry in (
        ("int", ""),
        ("int", " asymmetric"),
        ("int", " strict"),
        ("uint", ""),
        ("uint", " symmetric"),
    )
]


def tie_values(encoding: Encoding, seed: int) -> NDArray[np.float32]:
    """Levels, ties, their float32 neighbours, values beyond the grid and noise; a multiple of 8 of them."""
    spec, rng = encoding.spec, np.random.default_rng(seed)
    steps = np.arange(spec.q_min - 2, spec.q_max + 3, dtype=np.float64) - int(encoding.zero_point)
    if steps.size > 400:
        steps = np.concatenate([steps[:100], rng.choice(steps, 200, replace=False), steps[-100:]])
    exact = (np.concatenate([steps, steps + 0.5]) * float(encoding.scale)).astype(np.float32)
    around = [np.nextafter(exact, np.float32(direction)) for direction in (np.inf, -np.inf)]
    noise = (rng.standard_normal(500) * float(encoding.scale) * 2.0 ** (spec.bits - 1)).astype(np.float32)
    values = np.concatenate([exact, *around, noise, np.array([0.0, -0.0, 3e38, -3e38], np.float32)])
    return np.resize(values, (-(-values.size // 8), 8))


def after_quantizer(model: CheckedModel, site: Tensor, batch: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """What the readers of a tensor see."""
    collect = Collect()
    model.observe([batch], [Request(site, collect, "after")])
    return collect.values


class QuantizingConformance(ConformanceBase):
    """Rounding to the last bit, wherever the values live."""

    @pytest.mark.parametrize("text", _FORMATS)
    def test_activation_bits(self, open_network: Callable[[str], Opened], text: str) -> None:
        """An activation quantizer is `arithmetic.fake_quantize`, ties and saturation included."""
        model = open_network("shared_weights").model
        spec = QuantSpec.parse(text)
        rng = np.random.default_rng(spec.bits)
        for seed in range(3):
            zero = 0 if spec.symmetric else int(rng.integers(spec.q_min, spec.q_max + 1))
            encoding = Encoding.of(spec, rng.uniform(1, 2) * 2.0 ** int(rng.integers(-40, 20)), zero)
            values = tie_values(encoding, seed)
            model.set_quantizers({Tensor("x"): encoding})
            rounded = after_quantizer(model, Tensor("x"), {"x": values})
            expected = encoding.fake_quantize(values)
            np.testing.assert_array_equal(rounded.view(np.uint32), expected.view(np.uint32))

    @pytest.mark.parametrize("text", ["int2", "int4", "int8 strict", "uint5", "int8 asymmetric", "int12", "int16"])
    def test_weight_bits(self, open_network: Callable[[str], Opened], text: str) -> None:
        """A weight quantizer is `arithmetic.fake_quantize`, per tensor and per channel: rows of 1 and 0 read it out."""
        opened = open_network("shared_weights")
        model, rng = opened.model, np.random.default_rng(2)
        product = model.graph.uses("fc1.weight")[0].node.outputs[0]
        for granularity in ("per-tensor", "per-channel"):
            spec = QuantSpec.parse(f"{text} {granularity}")
            per_tensor = Encoding.of(
                QuantSpec.parse(text), 0.01, 0 if spec.symmetric else (spec.q_min + spec.q_max) // 2
            )
            values = rng.choice(tie_values(per_tensor, 0).reshape(-1), (8, 8), replace=False)
            encoding = per_tensor
            if granularity == "per-channel":
                scale = (0.01 * 2.0 ** rng.integers(-3, 4, 8)).astype(np.float32)
                encoding = Encoding(spec, scale, np.full(8, int(per_tensor.zero_point), np.int32), 0)
            model.edit([SetWeights({"fc1.weight": values, "fc1.bias": np.zeros(8, np.float32)})])
            model.set_quantizers({Weight("fc1.weight"): encoding})
            collect = Collect()
            model.observe([{"x": np.eye(8, dtype=np.float32)}], [Request(Tensor(product), collect)])
            np.testing.assert_array_equal(collect.values, encoding.fake_quantize(values).T)

    @pytest.mark.parametrize("text", ["float16", "bfloat16", "float8e4m3", "float8e5m2"])
    def test_float_formats(self, open_network: Callable[[str], Opened], text: str) -> None:
        """Smaller floats are casts, with a scale for the 8-bit ones."""
        model = open_network("shared_weights").model
        rng = np.random.default_rng(0)
        values = (rng.standard_normal((64, 8)) * np.exp(rng.uniform(-8, 6, (64, 8)))).astype(np.float32)
        scale = np.float32(0.37 if text.startswith("float8") else 1.0)
        encoding = Encoding.of(text, scale)
        model.set_quantizers({Tensor("x"): encoding})
        np.testing.assert_array_equal(
            after_quantizer(model, Tensor("x"), {"x": values}), encoding.fake_quantize(values)
        )

    def test_weights(self, opened: Opened) -> None:
        """Quantized weights act as their fake-quantized values do, in every layout."""
        self._check_weights(opened, "int4 per-channel")

    @pytest.mark.parametrize("text", ["int8 per-tensor", "uint5 per-channel"])
    def test_weights_on_other_grids(self, differing: Opened, text: str) -> None:
        """The same with one scale for all, and with zero points."""
        self._check_weights(differing, text)

    @staticmethod
    def _check_weights(opened: Opened, text: str) -> None:
        model, spec = opened.model, QuantSpec.parse(text)
        encodings: dict[Site, Encoding] = {
            Weight(name): encode_weight(model.weight(name), spec) for name in weight_names(model.graph)
        }
        model.set_quantizers(encodings)
        batch = opened.network.batch(2)
        assert_close(model.run(batch), opened.expected(batch, encodings))

    def test_block_weights(self, open_network: Callable[[str], Opened]) -> None:
        """Blocks along the input channels."""
        opened = open_network("attention")
        model, spec = opened.model, QuantSpec.parse("int4 block=8")
        encodings: dict[Site, Encoding] = {
            Weight(name): encode_weight(model.weight(name), spec, block_axis=1) for name in weight_names(model.graph)
        }
        model.set_quantizers(encodings)
        batch = opened.network.batch(2)
        assert_close(model.run(batch), opened.expected(batch, encodings))
        assert isinstance(next(iter(model.encodings().values())).spec.granularity, PerBlock)

    def test_int32_bias(self, open_network: Callable[[str], Opened]) -> None:
        """A bias on the int32 grid of input scale times weight scales."""
        opened = open_network("conv_net")
        scale = np.linspace(1e-3, 2e-3, 16, dtype=np.float32)
        spec = QuantSpec("int", 32, granularity=PerChannel())
        encodings: dict[Site, Encoding] = {Weight("conv2.bias"): Encoding(spec, scale, np.zeros(16, np.int32), 0)}
        opened.model.set_quantizers(encodings)
        batch = opened.network.batch(2)
        assert_close(opened.model.run(batch), opened.expected(batch, encodings))

    def test_switching_and_removing(self, differing: Opened) -> None:
        """Off is float again, on is as before, removed is gone; encodings read back equal, on or off."""
        model, batch = differing.model, differing.network.batch(2)
        plain = model.run(batch)
        spec = QuantSpec.parse("int4 per-tensor")
        sites: list[Site] = [Weight(name) for name in weight_names(model.graph)]
        sites.append(Tensor(model.graph.inputs[0]))
        encodings = {site: Encoding.of(spec, 0.2) for site in sites}
        model.set_quantizers(encodings)
        simulated = model.run(batch)
        assert any(not np.array_equal(simulated[name], plain[name]) for name in plain)
        assert dict(model.encodings()) == encodings
        model.enable(sites, on=False)
        assert_same(model.run(batch), plain)
        assert dict(model.encodings()) == encodings
        model.enable(sites, on=True)
        assert_same(model.run(batch), simulated)
        model.set_quantizers({site: None for site in sites})
        assert len(model.encodings()) == 0
        assert_same(model.run(batch), plain)

    def test_updating_one_keeps_the_others(self, open_network: Callable[[str], Opened]) -> None:
        """`set_quantizers` speaks of the sites it names."""
        model = open_network("two_inputs").model
        first = Encoding.of("int8", 0.1)
        second = Encoding.of("uint8", 0.2, 7)
        model.set_quantizers({Tensor("left"): first, Tensor("right"): first})
        model.set_quantizers({Tensor("right"): second})
        assert dict(model.encodings()) == {Tensor("left"): first, Tensor("right"): second}

    def test_one_reader_alone(self, open_network: Callable[[str], Opened]) -> None:
        """An Input site overrides the tensor's own for that reader: of an activation and of a shared weight."""
        opened = open_network("shared_weights")
        model, graph = opened.model, opened.model.graph
        linear = [node.name for node in graph.nodes if node.op == "Linear"]
        coarse = Encoding.of("int3 per-tensor", 0.5)
        fine = Encoding.of("int8 per-tensor", 0.02)
        hidden = graph.node(linear[1]).inputs[0] or ""
        encodings: dict[Site, Encoding] = {
            Tensor(hidden): coarse, Input(linear[1], 0): fine, Weight("fc1.weight"): coarse, Input(linear[1], 1): fine,
        }  # fmt: skip
        model.set_quantizers(encodings)
        batch = opened.network.batch(4)
        assert_close(model.run(batch), opened.expected(batch, encodings), 2e-2)
        model.set_quantizers({Input(linear[1], 0): None, Input(linear[1], 1): None})
        remaining = {Tensor(hidden): coarse, Weight("fc1.weight"): coarse}
        assert_close(model.run(batch), opened.expected(batch, remaining), 2e-2)

    def test_wrong_sites_change_nothing(self, open_network: Callable[[str], Opened]) -> None:
        """An unknown site, or scales that do not fit, are refused before anything changes."""
        model = open_network("conv_net").model
        good = Encoding.of("int8", 0.1)
        misfit = Encoding.of("int8 per-channel", np.ones(3), np.zeros(3, np.int32), 0)
        model.set_quantizers({Tensor("image"): good})
        wrong: tuple[tuple[Site, Encoding], ...] = (
            (Tensor("nothing"), good), (Weight("nothing"), good), (Input("nothing", 0), good),
            (Weight("conv1.weight"), misfit),
        )  # fmt: skip
        for site, encoding in wrong:
            with pytest.raises(IsobitError, match=r"nothing|conv1\.weight"):
                model.set_quantizers({Weight("fc.weight"): good, site: encoding})
            assert dict(model.encodings()) == {Tensor("image"): good}
        with pytest.raises(IsobitError):
            model.enable([Tensor("nothing")], on=False)

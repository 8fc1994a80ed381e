"""The triton kernel without a GPU: its bits by triton's interpreter, and what the compiler makes of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from isobit.encodings import Encoding, QuantSpec
from isobit.testing.conformance.quantizing import tie_values
from isobit_torch.simulate import cuda_kernel
from isobit_torch.simulate.arithmetic import fake_quantize
from isobit_torch.simulate.quantizers import Quantizer, WeightQuantizer

pytest.importorskip("triton")

KERNEL = "isobit_torch.simulate.triton_kernel"
FORMATS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(2, 17)]
FORMATS += [f"int{bits} strict" for bits in (2, 4, 8, 16)] + [f"int{bits} asymmetric" for bits in (3, 8, 16)]


def load_kernel() -> ModuleType:
    """The kernel's module once more: triton reads TRITON_INTERPRET when the kernel is defined."""
    spec = importlib.util.find_spec(KERNEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    """CPU tensors take the CUDA path, and triton interprets the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, KERNEL, load_kernel())
        patch.setattr(cuda_kernel, "DEVICES", frozenset({"cpu"}))
        cuda_kernel.usable.cache_clear()
        yield
    cuda_kernel.usable.cache_clear()


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy().view(np.uint32)


def by_kernel(encoding: Encoding, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
    scale, zero_point = torch.from_numpy(encoding.scale.copy()), torch.from_numpy(encoding.zero_point.copy())
    result = cuda_kernel.fused(x, scale, zero_point, encoding, in_place)
    assert result is not None
    return result


scales = st.floats(2.0**-100, 2.0**30, width=32)


@st.composite
def encodings(draw: st.DrawFn, granularity: str = "") -> Encoding:
    spec = QuantSpec.parse(f"{draw(st.sampled_from(FORMATS))} {granularity}")
    zeros = st.just(0) if spec.symmetric else st.integers(spec.q_min, spec.q_max)
    if not granularity:
        return Encoding.of(spec, draw(scales), draw(zeros))
    shape = (3,) if granularity == "per-channel" else (4, 3)
    scale = np.array([draw(scales) for _ in range(np.prod(shape))], np.float32).reshape(shape)
    zero = np.array([draw(zeros) for _ in range(scale.size)], np.int32).reshape(shape)
    return Encoding.of(spec, scale, zero, 1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # the interpreter computes with NumPy
class TestInterpreted:
    def test_the_probe_passes(self) -> None:
        for default in ("cpu", "meta"):
            cuda_kernel.usable.cache_clear()
            with torch.device(default):
                assert cuda_kernel.usable(torch.device("cpu"))

    @settings(max_examples=60, deadline=None)
    @given(encodings(), st.integers(0, 100))
    def test_per_tensor(self, encoding: Encoding, seed: int) -> None:
        x = tie_values(encoding, seed)
        expected = encoding.fake_quantize(x).view(np.uint32)
        given_x = torch.from_numpy(x.copy())
        np.testing.assert_array_equal(bits(by_kernel(encoding, given_x)), expected)
        np.testing.assert_array_equal(bits(given_x), x.view(np.uint32))
        written = by_kernel(encoding, given_x, in_place=True)
        assert written is given_x
        np.testing.assert_array_equal(bits(written), expected)

    @settings(max_examples=40, deadline=None)
    @given(encodings("per-channel"), st.integers(0, 1000))
    def test_per_channel_in_any_dense_order(self, encoding: Encoding, seed: int) -> None:
        parts = [tie_values(Encoding.of(str(encoding.spec).split()[0], s), seed) for s in encoding.scale]
        rng = np.random.default_rng(seed)
        x = np.stack([rng.choice(part.reshape(-1), (5, 4, 7)) for part in parts], 1)
        expected = encoding.fake_quantize(x).view(np.uint32)
        plain = torch.from_numpy(x)
        for view in (
            plain,
            plain.to(memory_format=torch.channels_last),
            plain.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
            plain[:1],
        ):
            result = by_kernel(encoding, view)
            assert result.stride() == view.stride()
            np.testing.assert_array_equal(bits(result), expected[: len(view)])

    @settings(max_examples=20, deadline=None)
    @given(encodings("block=8"), st.integers(0, 1000))
    def test_blocks_along_the_last_axis(self, encoding: Encoding, seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((4, 24)).astype(np.float32) * np.float32(encoding.scale.max())
        result = by_kernel(encoding, torch.from_numpy(x))
        np.testing.assert_array_equal(bits(result), encoding.fake_quantize(x).view(np.uint32))

    def test_float16(self) -> None:
        encoding = Encoding.of("uint8", 0.1, 100)
        x = torch.from_numpy(tie_values(encoding, 0)).clamp(-6e4, 6e4).half()
        expected = fake_quantize(x, torch.tensor(np.float32(0.1)), torch.tensor(100), 0, 255)
        assert by_kernel(encoding, x).dtype == torch.float16
        assert torch.equal(by_kernel(encoding, x), expected)

    def test_scales_at_the_edge_of_float32(self) -> None:
        for scale in (1.1754944e-38, 2.0**-149 * 2**24 * 3, 2.0**120):
            encoding = Encoding.of("int8", scale)
            x = tie_values(encoding, 1)
            np.testing.assert_array_equal(
                bits(by_kernel(encoding, torch.from_numpy(x))), encoding.fake_quantize(x).view(np.uint32)
            )

    def test_quantizers_use_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launched: list[tuple[int, ...]] = []
        launch = cuda_kernel._launch

        def counted(x: torch.Tensor, *rest: Any) -> None:
            launched.append(tuple(x.shape))
            launch(x, *rest)

        monkeypatch.setattr(cuda_kernel, "_launch", counted)
        encoding = Encoding.of("int8 per-channel", np.array([0.1, 0.2, 0.3]), np.zeros(3, int), 0)
        weight = torch.nn.Parameter(torch.randn(3, 20))
        quantizer = WeightQuantizer(encoding)
        with torch.no_grad():
            rounded = quantizer(weight)
            assert quantizer(weight) is rounded
        np.testing.assert_array_equal(rounded.numpy(), encoding.fake_quantize(weight.detach().numpy()))
        assert launched == [(3, 20)]
        assert torch.equal(quantizer(weight), rounded)  # with gradients: torch's operations
        assert launched == [(3, 20)]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.trace
    def test_what_it_leaves_to_torch(self) -> None:
        plain = Encoding.of("int8", 0.1)
        x = torch.randn(4, 6)
        scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
        assert cuda_kernel.fused(x, scale, zero, plain, False) is not None
        assert cuda_kernel.fused(x[:, ::2], scale, zero, plain, False) is None  # holes
        assert cuda_kernel.fused(x[:1].expand(4, 6), scale, zero, plain, False) is None  # overlaps
        assert cuda_kernel.fused(x.double(), scale, zero, plain, False) is None
        assert cuda_kernel.fused(x[:0], scale, zero, plain, False) is None
        assert cuda_kernel.fused(x, scale, zero.float(), plain, False) is None  # a learned zero point
        assert cuda_kernel.fused(x.clone().requires_grad_(), scale, zero, plain, False) is None
        with FlopCounterMode(display=False):
            assert cuda_kernel.fused(x, scale, zero, plain, False) is None
        used = []
        record = lambda y: used.append(cuda_kernel.fused(y, scale, zero, plain, False)) or y + 1  # noqa: E731
        torch.jit.trace(record, x, check_trace=False)
        assert used
        assert all(result is None for result in used)
        for text in ("int32", "float16"):
            assert cuda_kernel.fused(x, scale, zero, Encoding.of(text, 1.0), False) is None

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_compiled_models_call_it(self) -> None:
        """Not Inductor's own code: there the call is opaque, and a compiled graph has the eager bits."""
        encoding = Encoding.of("int8 per-channel", np.array([0.1, 0.2, 0.3]), np.zeros(3, int), 1)
        quantizer, calls = Quantizer(encoding), []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
            return graph

        compiled = torch.compile(quantizer, backend=backend, fullgraph=True)
        for x in (torch.randn(4, 3, 5), torch.randn(4, 3, 10)[..., ::2]):
            with torch.no_grad():
                np.testing.assert_array_equal(compiled(x).numpy(), encoding.fake_quantize(x.numpy()))
        assert calls
        assert set(calls) == {"isobit.fake_quantize"}
        torch.library.opcheck(
            torch.ops.isobit.fake_quantize.default,
            (torch.randn(4, 3), quantizer.scale, quantizer.zero_point, -128, 127, 1),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_a_kernel_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No C compiler, wrong bits: a warning, and torch's operations take over."""
    monkeypatch.setattr(cuda_kernel, "DEVICES", frozenset({"cpu"}))

    def broken(*args: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    def wrong(x: torch.Tensor, result: torch.Tensor, *args: Any) -> None:
        result.zero_()

    encoding = Encoding.of("int8", 0.1)
    for launch, reason in ((broken, "C compiler"), (wrong, "differ")):
        cuda_kernel.usable.cache_clear()
        monkeypatch.setattr(cuda_kernel, "_launch", launch)
        x = torch.randn(10)
        with pytest.warns(RuntimeWarning, match=reason):
            rounded = Quantizer(encoding)._compute(x)
        np.testing.assert_array_equal(rounded.numpy(), encoding.fake_quantize(x.numpy()))
    cuda_kernel.usable.cache_clear()


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("contract", [False, True])
def test_compiled_instructions(
    architecture: int, kind: str, several: bool, contract: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """True division, subnormals kept, halves rounded to nearest; contraction, even if allowed, has nothing to do."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = {name: "i32" for name in ("count", "inner", "scales")}
    kinds |= {"x_pointer": f"*{kind}", "result_pointer": f"*{kind}", "scale_pointer": "*fp32"}
    kinds |= {"zero_point_pointer": "*i32", "q_min": "fp32", "q_max": "fp32"}
    settings = {"several": several, "wide": False, "block": 1024}
    order = load_kernel().fake_quantize_kernel.arg_names
    signature = {name: kinds.get(name, "constexpr") for name in order}
    source = ASTSource(load_kernel().fake_quantize_kernel, signature, settings)
    target, options = GPUTarget("cuda", architecture, 32), {"enable_fp_fusion": contract}
    code = triton.compile(source, target=target, options=options).asm["ptx"]
    instructions = re.findall(r"^\s+(?:@%p\d+ )?((?:div|fma|mad|mul|add|sub|cvt)\.[\w.]+)", code, re.MULTILINE)
    used = Counter(re.sub(r"^(mul|add|sub)\.rn\.", r"\1.", name) for name in instructions)  # .rn: not to be contracted
    elements = used["mul.f32"]
    assert elements > 0
    assert used["div.rn.f32"] == elements
    assert used["add.f32"] == 3 * elements  # to the integer, back, and the zero point
    assert used["sub.f32"] == elements
    assert not [name for name in used if name.startswith(("fma", "div.full", "div.approx", "mad.rn"))]
    assert ".ftz" not in code
    if kind != "fp32":
        down = [name for name in used if re.fullmatch(r"cvt\..*f16(x2)?\.f32", name)]
        assert down
        assert all(name.startswith("cvt.rn.") for name in down)

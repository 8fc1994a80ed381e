"""What the exporter makes once in a process, and the trace that a lowered program is spared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isobit_torch.backend import TorchBackend
from isobit_torch.export.kept_translations import kept_translations


def _decomposed(monkeypatch: pytest.MonkeyPatch, module: nn.Module, shape: tuple[int, ...]) -> int:
    """How often the decompositions of a program were carried out while its float model was exported."""
    model = TorchBackend().open(module.eval(), torch.randn(shape))
    calls, carry_out = [], torch.export.ExportedProgram.run_decompositions

    def counted(program: torch.export.ExportedProgram, table: object) -> torch.export.ExportedProgram:
        calls.append(program)
        return carry_out(program, table)

    with monkeypatch.context() as patched:
        patched.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
        proto, _ = model.to_onnx()
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    return len(calls)


def test_a_lowered_program_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6), nn.Softmax(-1)]
    assert _decomposed(monkeypatch, nn.Sequential(*layers), (2, 6)) == 0
    assert _decomposed(monkeypatch, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), (2, 3, 4, 4)) == 1


def test_exports_of_others_are_as_before() -> None:
    """Nothing is left in PyTorch's exporter, and what one export adds reaches no other."""
    from torch.onnx._internal.exporter import _fx_passes, _registration

    registry = _registration.ONNXRegistry
    before = vars(registry)["from_torchlib"], _fx_passes.decompose_with_registry
    with kept_translations():
        assert vars(registry)["from_torchlib"] is not before[0]
        first, second = registry.from_torchlib(21), registry.from_torchlib(21)
        first.functions["aten::add.Tensor"].clear()
        assert second.functions["aten::add.Tensor"]
        assert registry.from_torchlib().functions
        assert registry.from_torchlib(opset_version=21).opset_version == 21
    assert (vars(registry)["from_torchlib"], _fx_passes.decompose_with_registry) == before


class WithLateOperator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.ops.isobit_late.twice(self.conv(x)))


def test_an_operator_that_came_after_the_first_export_is_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    _decomposed(monkeypatch, nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), (2, 3, 4, 4))
    late = torch.library.Library("isobit_late", "DEF")
    late.define("twice(Tensor x) -> Tensor")
    late.impl("twice", lambda x: x * 2 + torch.sin(x), "CompositeImplicitAutograd")
    assert _decomposed(monkeypatch, WithLateOperator(), (2, 3, 4, 4)) == 1
    late._destroy()


def test_a_registry_that_holds_more_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of PyTorch, whose registry a copy would not copy whole."""
    from torch.onnx._internal.exporter import _registration

    registry, first = _registration.ONNXRegistry, _registration.ONNXRegistry.__init__
    before = vars(registry)["from_torchlib"]

    def longer(self: object) -> None:
        first(self)
        self.more = {}

    monkeypatch.setattr(registry, "__init__", longer)
    with kept_translations():
        assert vars(registry)["from_torchlib"] is before

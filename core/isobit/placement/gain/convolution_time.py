"""What a convolution takes in float and on integers, by its shape and the costs of a processor."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from isobit.graph.graph import Graph, Node
from isobit.placement.gain.tensor_sizes import TensorSizes
from isobit.targets.convolution_costs import ConvolutionCosts


@dataclass(frozen=True)
class Convolution:
    """The shape of a convolution: `read` and `written` are elements of one sample, `taps` those of one kernel."""

    read: float
    written: float
    inputs: int
    outputs: int
    groups: int
    taps: int

    @classmethod
    def of(cls, graph: Graph, node: Node, sizes: TensorSizes) -> Convolution | None:
        """That of a Conv with constant weights over a plane or more; None for other nodes, and of unknown sizes.

        Along one axis kernels are others than the costs are of: those of floats know no blocks and take longer.
        """
        weight = graph.weights.get(node.input(1) or "")
        if node.op != "Conv" or weight is None or len(weight.shape) < 4:
            return None
        read, written = sizes.elements(node.inputs[0] or ""), sizes.elements(node.outputs[0])
        if read is None or written is None:
            return None
        groups = int(node.attributes.get("group", 1))
        outputs, inputs, *kernel = weight.shape
        return cls(read, written, inputs * groups, outputs, groups, prod(kernel))

    @property
    def multiply_adds(self) -> float:
        """Of one sample."""
        return self.written * self.inputs / self.groups * self.taps

    @property
    def reads_weights(self) -> bool:
        """Whether there are more weights than elements, as behind a pooling of all positions.

        There the time is that of reading weights, of which integers are a quarter.
        """
        return self.inputs // self.groups * self.outputs * self.taps > self.read + self.written

    def in_float(self, costs: ConvolutionCosts) -> float:
        """Nanoseconds of the float kernel, which computes whole blocks of channels, in each group."""
        block, width = costs.channel_block, self.outputs // self._runs
        filled = ceil(width / block) * block / width
        time = self.multiply_adds * costs.multiply + (self.read + self.written) * costs.element
        return time * filled

    def in_integers(self, costs: ConvolutionCosts) -> float:
        """Nanoseconds of the kernel of integers.

        What a kernel reads is gathered tap by tap where every channel has a kernel of its own, in each group, or where
        the channels do not fill a block: the fewer they are, the more of the time that is.
        """
        time = self.multiply_adds * costs.integer_multiply + self.written * costs.integer_element
        is_gathered = self.groups > 1 or self.inputs % costs.channel_block
        if self.taps > 1 and is_gathered:
            time += self.written / self.outputs * self.taps * self._runs * costs.integer_tap
        return time

    @property
    def _runs(self) -> int:
        """How often a kernel goes over the positions: once for each group, and once for all of a depthwise layer."""
        return 1 if self.groups == self.inputs else self.groups

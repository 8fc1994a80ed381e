"""The op vocabulary of the neutral graph: ONNX's names, and what the core needs to know of each op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operand:
    """What a constant at one input of an op is: its role, and its channel and block axes in canonical layout."""

    role: str
    channel_axis: int | None = None
    block_axis: int | None = None


_WEIGHT = Operand("weight", 0, 1)
_BIAS = Operand("bias", 0)
_NORM = {1: Operand("scale", 0), 2: Operand("shift", 0)}
_RECURRENT = {
    1: Operand("weight", 0, 1),
    2: Operand("recurrent_weight", 0, 1),
    3: Operand("input_bias", 0),
    8: Operand("recurrent_bias", 0),
}

#: Layers that run over a sequence. Their inputs are ONNX's, of one direction; 3 and 8 are the two halves of ONNX's B.
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

#: Constant operands by op and input index. Canonical layouts: Conv and ConvTranspose (out, in/groups, *kernel),
#: Linear (out, in), MatMul (batch, out, in), Gather (rows, dimension), LSTM, GRU and RNN (gates * hidden, in).
OPERANDS: Mapping[str, Mapping[int, Operand]] = {
    "Conv": {1: _WEIGHT, 2: _BIAS},
    "ConvTranspose": {1: _WEIGHT, 2: _BIAS},
    "Linear": {1: _WEIGHT, 2: _BIAS},
    "MatMul": {1: Operand("weight", -2, -1)},
    "Gather": {0: Operand("weight", 0, 1)},
    "BatchNormalization": {**_NORM, 3: Operand("mean", 0), 4: Operand("variance", 0)},
    "LayerNormalization": _NORM,
    "GroupNormalization": _NORM,
    "InstanceNormalization": _NORM,
    "RMSNormalization": {1: Operand("scale", 0)},
    "PRelu": {1: Operand("slope", 0)},
    **dict.fromkeys(RECURRENT, _RECURRENT),
}

#: Ops whose weight is matrix-multiplied or convolved with an activation at input 0.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Linear", "MatMul"})

#: Ops that run graphs of their own, whose inside the neutral graph does not show. What a body reads is an input.
BODIES = frozenset({"If", "Loop", "Scan"})

#: Attribute of such a node: input index, op of the layer inside, and axes of channels and blocks of each weight that
#: layers in the bodies read. The weight is as the backend has it; without axes its readers disagree about them.
BODY_WEIGHTS = "body_weights"

#: Inputs that are settings, not data: a constant there becomes the attribute of that name.
SETTINGS: Mapping[str, Mapping[int, str]] = {
    "Clip": {1: "min", 2: "max"},
    "Reshape": {1: "shape"},
    "Expand": {1: "shape"},
    "Squeeze": {1: "axes"},
    "Unsqueeze": {1: "axes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "Split": {1: "split"},
    "Tile": {1: "repeats"},
    "TopK": {1: "k"},
    "Resize": {1: "roi", 2: "scales", 3: "sizes"},
    "Dropout": {1: "ratio", 2: "training_mode"},
    "CumSum": {1: "axis"},
    "OneHot": {1: "depth"},
    "Trilu": {1: "k"},
    **{
        f"Reduce{kind}": {1: "axes"}
        for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
    },
}

#: Ops whose outputs hold only values (or zeros) of their data input 0; Concat of all its inputs.
VALUE_PRESERVING = frozenset(
    "Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Gather GatherElements GatherND Expand Tile MaxPool "
    "GlobalMaxPool DepthToSpace SpaceToDepth ReduceMax ReduceMin Concat Pad Resize Compress".split()
)

#: Elementwise ops of one input, shape and channels unchanged.
UNARY = frozenset(
    "Relu Clip LeakyRelu PRelu Elu Selu Celu Gelu HardSwish HardSigmoid Swish Mish Sigmoid Tanh Softplus Softsign "
    "ThresholdedRelu Shrink Exp Log Sqrt Reciprocal Neg Abs Erf Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh "
    "Floor Ceil Round Sign Softmax LogSoftmax Hardmax "
    "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
    "LpNormalization LRN Cast CumSum Not IsNaN IsInf Trilu Identity Dropout".split()
)

#: Those of them that are a curve: a factor does not pass through.
CURVES = frozenset(
    "Clip Elu Selu Celu Gelu HardSwish HardSigmoid Swish Mish Sigmoid Tanh Softplus Softsign ThresholdedRelu".split()
)

#: Elementwise ops of several inputs, with broadcasting.
BROADCAST = frozenset(
    "Add Sub Mul Div Pow Max Min Mean Sum Where Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor Mod".split()
)

#: Ops that compute shapes from shapes.
SHAPE_SOURCES = frozenset({"Shape", "Size"})

#: Ops whose outputs have as many elements as the values that they read say.
SIZED_BY_VALUES = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})

#: Ops that give other numbers each time.
RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())

#: Attribute defaults, filled in so that graphs of different backends compare equal.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Conv": {"group": 1},
    "ConvTranspose": {"group": 1},
    "BatchNormalization": {"epsilon": 1e-5},
    "LayerNormalization": {"axis": -1, "epsilon": 1e-5},
    "InstanceNormalization": {"epsilon": 1e-5},
    "GroupNormalization": {"epsilon": 1e-5},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Softmax": {"axis": -1},
    "LogSoftmax": {"axis": -1},
    "Hardmax": {"axis": -1},
    "RMSNormalization": {"axis": -1, "epsilon": 1e-5},
    "Gelu": {"approximate": "none"},
    "Flatten": {"axis": 1},
    "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
    "MaxPool": {"ceil_mode": 0},
    "Gather": {"axis": 0},
    "LSTM": {"direction": "forward", "input_forget": 0, "layout": 0},
    "GRU": {"direction": "forward", "linear_before_reset": 0, "layout": 0},
    "RNN": {"direction": "forward", "layout": 0},
}

#: The activations of a recurrent layer where nothing is said, one direction's.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}

#: Attributes that say nothing of the result.
IGNORED_ATTRIBUTES = frozenset({"momentum", "training_mode", "storage_order", "stash_type"})


#: Attribute of a layer that a backend keeps whole, as its framework has it: how many of its last inputs are variables.
VARIABLES = "variables"


def operand(op: str, index: int) -> Operand | None:
    """What a constant at input `index` of `op` is, or None when it is plain data."""
    return OPERANDS.get(op, {}).get(index)

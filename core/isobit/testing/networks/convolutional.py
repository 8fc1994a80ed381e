"""Images: convolutions of every kind, batch norms before and behind them, residual sums."""

from __future__ import annotations

from isobit.testing.networks.builder import Network, NetworkBuilder


def conv_net() -> Network:
    """Convolutions with batch norm, ReLU and ReLU6, pooling and a linear layer."""
    b = NetworkBuilder("conv_net")
    x = b.input("image", 3, 16, 16)
    x = b.op("Relu", "relu1", b.batch_norm("bn1", b.conv("conv1", x, 8, bias=False)))
    x = b.op(
        "MaxPool", "pool", x, kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0
    )
    x = b.relu6("relu2", b.batch_norm("bn2", b.conv("conv2", x, 16, stride=2)))
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    return b.build()


def inverted_residual() -> Network:
    """The block of MobileNetV2: expand, depthwise, project, add."""
    b = NetworkBuilder("inverted_residual", 1)
    x = b.input("image", 3, 16, 16)
    x = b.relu6("stem_act", b.batch_norm("stem_bn", b.conv("stem", x, 8, stride=2, bias=False)))
    y = b.relu6("expand_act", b.batch_norm("expand_bn", b.conv("expand", x, 24, 1, bias=False)))
    y = b.relu6("depthwise_act", b.batch_norm("depthwise_bn", b.conv("depthwise", y, 24, group=24, bias=False)))
    y = b.batch_norm("project_bn", b.conv("project", y, 8, 1, bias=False))
    x = b.op("Add", "add", x, y)
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    return b.build()


def residual() -> Network:
    """The basic block of ResNet, with a projection on its shortcut and without: He et al., CVPR 2016, figure 2."""
    b = NetworkBuilder("residual", 8)
    x = b.input("image", 3, 12, 12)
    x = b.op("Relu", "stem_relu", b.batch_norm("stem_bn", b.conv("stem", x, 8, bias=False)))
    for block, (width, stride) in enumerate(((8, 1), (12, 2))):
        stem = f"block{block}"
        y = b.batch_norm(f"{stem}_bn1", b.conv(f"{stem}_conv1", x, width, stride=stride, bias=False))
        y = b.conv(f"{stem}_conv2", b.op("Relu", f"{stem}_relu1", y), width, bias=False)
        y = b.batch_norm(f"{stem}_bn2", y)
        if stride > 1:
            shortcut = b.conv(f"{stem}_shortcut", x, width, 1, stride=stride, bias=False)
            x = b.batch_norm(f"{stem}_shortcut_bn", shortcut)
        x = b.op("Relu", f"{stem}_relu2", b.op("Add", f"{stem}_add", y, x))
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    return b.build()


def pre_activation() -> Network:
    """Batch norm before the convolution: folded forward where there is no padding, else left over; a linear one too."""
    b = NetworkBuilder("pre_activation", 2)
    x = b.input("image", 4, 8, 8)
    x = b.conv("pointwise", b.batch_norm("bn1", x), 8, 1)
    x = b.op("Relu", "relu", x)
    x = b.conv("padded", b.batch_norm("bn2", x), 8, 3)
    b.output("features", b.linear("fc", b.global_pool("gap", x), 6))
    return b.build()


def upsampler() -> Network:
    """Transposed convolutions, plain and grouped, with batch norm behind."""
    b = NetworkBuilder("upsampler", 3)
    x = b.input("image", 4, 6, 6)
    x = b.op("Relu", "relu1", b.batch_norm("bn1", b.conv_transpose("up1", x, 8)))
    x = b.conv_transpose("up2", x, 6, group=2)
    b.output("image_out", b.op("Sigmoid", "sigmoid", x))
    return b.build()

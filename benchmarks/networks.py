"""ResNet-18, ResNet-50 and MobileNetV2 with random weights, as neutral networks that every backend can build.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1; Sandler et al., "MobileNetV2:
Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
"""

from __future__ import annotations

from isobit.testing.networks import Network, NetworkBuilder


def resnet18(size: int = 224, classes: int = 1000) -> Network:
    """ResNet-18 for `size` x `size` images."""
    b = NetworkBuilder("resnet18")
    x, channels = _stem(b, size), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            x = _basic_block(b, f"layer{stage + 1}.{block}", x, width, stride, project=stride != 1 or channels != width)
            channels = width
    b.output("logits", b.linear("fc", b.global_pool("pool", x), classes))
    return b.build()


def resnet50(size: int = 224, classes: int = 1000) -> Network:
    """ResNet-50 for `size` x `size` images; blocks that halve the size do so in their 3x3 layer."""
    b = NetworkBuilder("resnet50")
    x = _stem(b, size)
    for stage, (width, repeats) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(repeats):
            x = _bottleneck(
                b, f"layer{stage + 1}.{block}", x, width, 2 if stage and not block else 1, project=not block
            )
    b.output("logits", b.linear("fc", b.global_pool("pool", x), classes))
    return b.build()


def _stem(b: NetworkBuilder, size: int) -> str:
    x = b.input("image", 3, size, size)
    x = b.op("Relu", "stem.relu", b.batch_norm("stem.bn", b.conv("stem.conv", x, 64, 7, stride=2, bias=False)))
    return b.op(
        "MaxPool", "stem.pool", x, kernel_shape=(3, 3), strides=(2, 2), dilations=(1, 1), pads=(1, 1, 1, 1), ceil_mode=0
    )


def _bottleneck(b: NetworkBuilder, name: str, x: str, width: int, stride: int, *, project: bool) -> str:
    y = b.op("Relu", f"{name}.relu1", b.batch_norm(f"{name}.bn1", b.conv(f"{name}.conv1", x, width, 1, bias=False)))
    y = b.batch_norm(f"{name}.bn2", b.conv(f"{name}.conv2", y, width, 3, stride=stride, bias=False))
    y = b.op("Relu", f"{name}.relu2", y)
    y = b.batch_norm(f"{name}.bn3", b.conv(f"{name}.conv3", y, 4 * width, 1, bias=False))
    if project:
        shortcut = b.conv(f"{name}.shortcut", x, 4 * width, 1, stride=stride, bias=False)
        x = b.batch_norm(f"{name}.shortcut_bn", shortcut)
    return b.op("Relu", f"{name}.relu3", b.op("Add", f"{name}.add", y, x))


def _basic_block(b: NetworkBuilder, name: str, x: str, width: int, stride: int, *, project: bool) -> str:
    y = b.batch_norm(f"{name}.bn1", b.conv(f"{name}.conv1", x, width, 3, stride=stride, bias=False))
    y = b.op("Relu", f"{name}.relu1", y)
    y = b.batch_norm(f"{name}.bn2", b.conv(f"{name}.conv2", y, width, 3, bias=False))
    if project:
        shortcut = b.conv(f"{name}.shortcut", x, width, 1, stride=stride, bias=False)
        x = b.batch_norm(f"{name}.shortcut_bn", shortcut)
    return b.op("Relu", f"{name}.relu2", b.op("Add", f"{name}.add", y, x))


def mobilenet_v2(size: int = 224, classes: int = 1000) -> Network:
    """MobileNetV2, width 1.0, for `size` x `size` images."""
    b = NetworkBuilder("mobilenet_v2")
    x = b.input("image", 3, size, size)
    x = b.relu6("stem.relu", b.batch_norm("stem.bn", b.conv("stem.conv", x, 32, 3, stride=2, bias=False)))
    channels, number = 32, 0
    for expand, width, repeats, first_stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(b, f"block{number}", x, channels, width, expand, stride)
            channels, number = width, number + 1
    x = b.relu6("head.relu", b.batch_norm("head.bn", b.conv("head.conv", x, 1280, 1, bias=False)))
    b.output("logits", b.linear("fc", b.global_pool("pool", x), classes))
    return b.build()


def _inverted_residual(
    b: NetworkBuilder, name: str, x: str, channels: int, width: int, expand: int, stride: int
) -> str:
    y, hidden = x, channels * expand
    if expand != 1:
        y = b.batch_norm(f"{name}.expand_bn", b.conv(f"{name}.expand", y, hidden, 1, bias=False))
        y = b.relu6(f"{name}.expand_relu", y)
    y = b.conv(f"{name}.depthwise", y, hidden, 3, stride=stride, group=hidden, bias=False)
    y = b.relu6(f"{name}.depthwise_relu", b.batch_norm(f"{name}.depthwise_bn", y))
    y = b.batch_norm(f"{name}.project_bn", b.conv(f"{name}.project", y, width, 1, bias=False))
    return b.op("Add", f"{name}.add", x, y) if stride == 1 and channels == width else y


NETWORKS = {"resnet18": resnet18, "resnet50": resnet50, "mobilenet_v2": mobilenet_v2}

"""Layers that other frameworks have and Keras has not, for networks that come from there."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("isobit")
class GroupedConv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """A transposed convolution in groups; its kernel is (height, width, out, in/groups)."""

    def __init__(self, filters: int, kernel_size: Any, strides: Any = (1, 1), *, groups: int, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, strides, **kwargs)
        self.groups = groups

    def build(self, input_shape: Any) -> None:
        """A kernel for one group's inputs."""
        super().build((*input_shape[:-1], input_shape[-1] // self.groups))
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def call(self, inputs: Any) -> Any:
        """Each group of channels through its part of the kernel."""
        parts = zip(
            keras.ops.split(inputs, self.groups, axis=-1),
            keras.ops.split(keras.ops.convert_to_tensor(self.kernel), self.groups, axis=-2),
            strict=True,
        )
        results = [keras.ops.conv_transpose(x, kernel, self.strides, self.padding) for x, kernel in parts]
        result = keras.ops.concatenate(results, axis=-1)
        return self.activation(result + self.bias if self.use_bias else result)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of one convolution of all channels."""
        return super().compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """With the number of groups."""
        return {**super().get_config(), "groups": self.groups}

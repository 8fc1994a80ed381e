"""One TensorFlow kernel for each op of the neutral graph, and what the kernels read."""

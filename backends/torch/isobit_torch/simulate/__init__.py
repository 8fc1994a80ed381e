"""Quantizers in the graph: their arithmetic, kernels, observation and gradients."""

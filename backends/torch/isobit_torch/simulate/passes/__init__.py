"""Passes over the simulator's graph: observed, of parts of it, and with gradients by weights."""

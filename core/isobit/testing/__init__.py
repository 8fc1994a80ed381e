"""For those who write backends: reference networks, a NumPy interpreter of the neutral graph, the conformance suite."""

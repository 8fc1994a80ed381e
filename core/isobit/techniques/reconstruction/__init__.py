"""The engine of ReconstructBlocks: blocks of a graph, and weights that are rounded by the errors of their outputs."""

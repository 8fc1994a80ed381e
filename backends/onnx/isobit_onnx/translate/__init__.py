"""Between an ONNX model and the neutral graph: the graph, the places of its sites, its edits carried out."""

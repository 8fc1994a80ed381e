"""isobit for Keras 3 models on the TensorFlow backend.

From top to bottom, each imports only what is below it:

- `plugin`, then `backend`, which imports Keras and TensorFlow only when a model is opened
- `open_model`, `restore_state` and `reference_networks`
- `model`: the contract of a backend
- `export`: to ONNX, and the state as bytes
- `read`: a Keras model to the raw neutral graph, and beside it `simulate`: the simulator and its quantizers
- `kernels`: the ops of the neutral graph in TensorFlow
- `axes`, `layers` and `training`: the two orders of axes, layers that Keras lacks, what acts in training alone
"""

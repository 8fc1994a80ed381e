"""The ONNX backend of isobit: models through onnx-ir, runs through onnxruntime, simulators as plain QDQ models.

Each room imports those below it alone. From the top: `plugin`, `backend`, `restore_state`, `model`; `state` and
`reference_networks`; `export` (files to deploy), `run` (sessions and observation), `qdq` (quantizers as nodes) and
`write` (float models of a neutral graph), `translate` (between a model and the neutral graph), `read` (a file in the
form that the backend works on).
"""

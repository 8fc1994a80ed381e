"""A model in onnxruntime: its sessions, and what is observed inside them."""

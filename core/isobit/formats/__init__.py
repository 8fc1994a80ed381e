"""Files of encodings: one module a format. A format has ``name``, ``write(encodings, path)`` and ``read(path)``."""

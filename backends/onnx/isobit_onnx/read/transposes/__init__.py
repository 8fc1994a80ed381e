"""Transposes that an exporter has put around operations, and that a file does not need."""

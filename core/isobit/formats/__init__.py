"""Formats of encodings files, one a module; `isobit.encodings_files` reads and writes files in any of them."""

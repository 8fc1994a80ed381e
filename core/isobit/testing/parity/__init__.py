"""The promise, counted: every reference network in every framework, and each difference between them.

One process per framework (`worker`) writes what it found to a folder; `comparing` reads the folders.
"""

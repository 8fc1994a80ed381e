"""Parity of frameworks: builds every reference network in each and counts all differences.

One process per framework (`worker`) writes what it found to a folder; `comparing` reads the folders.
"""

"""Factors between a layer's input and its weight: where they may stand, how they are searched and put in."""

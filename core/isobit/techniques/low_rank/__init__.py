"""Layers as two or three of lower rank: the factors with the least error of the output, and what each rank costs."""

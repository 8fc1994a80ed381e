"""Recurrent layers as the neutral graph has them."""

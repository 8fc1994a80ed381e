"""Composite calls as the elementary ones that the neutral graph has."""

"""Sequences: steps that are counted, passed over, or read one by one."""

"""A vendor's plug-in without a backend: a target, a calibration scheme, a technique and a file format."""

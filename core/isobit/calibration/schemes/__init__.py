"""Schemes of calibration, one file each: from the histogram of a tensor to the range that it represents."""

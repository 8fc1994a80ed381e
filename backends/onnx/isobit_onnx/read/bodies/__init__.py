"""Bodies of If, Loop and Scan that take the place of their node."""

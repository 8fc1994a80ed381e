"""One run of `isobit quantize`: its steps, what it measures, and how that is printed."""

"""The command `isobit compress`, and costs that are shown."""

"""The rows of an input that meet the weight of a layer, and their second moments."""

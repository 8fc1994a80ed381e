"""The error behind the activation function that reads a layer, from the rows themselves."""

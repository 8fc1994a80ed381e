"""What techniques know of layers: weights and biases, which two are neighbours, how outputs are distributed."""

"""Values of layers as files, and what differs between two of them."""

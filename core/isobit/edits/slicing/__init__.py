"""Which places of a graph lose channels together, op by op, and the `Slice` edit that removes them."""

"""By which rules Keras layers and operations become nodes of the neutral graph."""

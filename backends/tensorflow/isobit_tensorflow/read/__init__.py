"""Reading a Keras model into the raw neutral graph."""

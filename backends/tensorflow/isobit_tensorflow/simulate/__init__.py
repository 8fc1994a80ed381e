"""The simulator, a Keras model: passes over the neutral graph, quantizers, observation."""

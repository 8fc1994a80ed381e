"""Gradients by weights of the simulator, of the whole of it and of parts (`isobit.backend.Differentiable`)."""

"""From a module to a plain fx graph over the user's parameters, in which each tensor is one value."""

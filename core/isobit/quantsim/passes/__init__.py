"""How a pass over data runs in this process, and how it is shown."""

"""The copy of a user's module that is captured: nothing of it is the user's own."""

"""The captured program, and what every other part reads it with."""

"""`isobit auto`: what is asked."""

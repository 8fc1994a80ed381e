"""`isobit analyze`: what is asked, and what is printed."""

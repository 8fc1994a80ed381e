"""What `isobit inspect` shows, by the kind of file."""

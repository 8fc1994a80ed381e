"""What the command's exit codes mean; 0 is success, and 2 wrong usage, which typer answers."""

USER_ERROR = 1  # an IsobitError
BUG = 70  # any other exception
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM

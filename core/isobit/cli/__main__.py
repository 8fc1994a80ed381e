"""`python -m isobit.cli`, where the `isobit` command is not on the path."""

from isobit.cli import main

if __name__ == "__main__":
    main()

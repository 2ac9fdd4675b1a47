"""``python -m pgalloc`` is the command line."""

from pgalloc.cli import main

if __name__ == "__main__":
    main()

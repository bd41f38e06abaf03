"""`python -m qbench` is the command `qbench`."""

from qbench.commands.entry import main

if __name__ == "__main__":
    main()

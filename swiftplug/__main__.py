"""`python -m swiftplug` is the `swiftplug` command; `torchrun -m swiftplug` needs it."""

from swiftplug.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m dfqbench`."""

from dfqbench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

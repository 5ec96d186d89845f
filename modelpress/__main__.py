"""`python -m modelpress`: the same as the command `modelpress`."""

from modelpress import cli

if __name__ == "__main__":
    cli.main()

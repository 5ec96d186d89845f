"""`python -m demo`: see run.py."""

from demo import run

if __name__ == "__main__":
    run.main()

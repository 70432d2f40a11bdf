"""`speechzoo`, and `python -m speechzoo`."""

import sys


def main() -> int:
    """Entry point. The imports take seconds, in which Ctrl-C should not show their traceback either."""
    try:
        from speechzoo.cli import main as command
    except KeyboardInterrupt:
        print("speechzoo: interrupted", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())

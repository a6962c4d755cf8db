"""`python -m data_prep run|status|explain|verify|show CONFIG.yaml`: the same program as `retro prep`."""

from retro.cli.main import main

if __name__ == "__main__":
    import sys

    raise SystemExit(main(["prep", *sys.argv[1:]]))

"""Write the store that version 1 of the format is known by: `python -m tests.golden.make_store_v1`.

It was run once; a later version of the library must read what lies there.
"""

from tests.test_store import GOLDEN, built


def main() -> None:
    built(GOLDEN, size=16)


if __name__ == "__main__":
    main()

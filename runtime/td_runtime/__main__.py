"""``python -m td_runtime`` is ``td-runtime``."""

from td_runtime.cli import main

if __name__ == "__main__":
    main()

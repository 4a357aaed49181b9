"""``python -m td_runtime.gateway``: how the supervisor starts the gateway."""

import sys

from td_runtime.start_imports import imports_without_extras

with imports_without_extras():
    from td_runtime.gateway.process import main

if __name__ == "__main__":
    sys.exit(main())

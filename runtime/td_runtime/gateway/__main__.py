"""``python -m td_runtime.gateway``: how the supervisor starts the gateway."""

import os

from td_runtime.start_imports import imports_without_extras

with imports_without_extras():
    from td_runtime.gateway.process import main

if __name__ == "__main__":
    # All is closed and said; to take apart what was imported would hold up a stop for 30 ms.
    os._exit(main())

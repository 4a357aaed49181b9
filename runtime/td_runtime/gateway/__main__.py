"""``python -m td_runtime.gateway``."""

import sys

from td_runtime.gateway.process import main

sys.exit(main())

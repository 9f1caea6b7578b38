"""``python -m sage_ros.episodes``."""

import sys

from .cli import main

sys.exit(main())

"""``python -m llama_pynq``."""

import sys

from .cli import main

sys.exit(main())

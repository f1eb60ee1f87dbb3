"""``python -m llama_pynq``."""

import sys

from llama_pynq.cli import main

sys.exit(main())

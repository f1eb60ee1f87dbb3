"""``python -m llama_pynq``."""

import sys

from llama_pynq.cli.main import main

sys.exit(main())

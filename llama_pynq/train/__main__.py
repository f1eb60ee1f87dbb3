"""``python -m llama_pynq.train --out DIR``: train the bundled model."""

from llama_pynq.train.train import main

main()

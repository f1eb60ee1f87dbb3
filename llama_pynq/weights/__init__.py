"""From a checkpoint to weights in the order that the hardware reads."""

"""The kernel's source, so that an installed package can find its own copy."""

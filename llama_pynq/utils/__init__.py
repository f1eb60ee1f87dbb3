"""Files, locks, downloads and checks of numbers, for use by all other folders."""

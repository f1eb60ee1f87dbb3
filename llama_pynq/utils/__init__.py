"""Files, locks and downloads: what every other folder may use."""

"""Where overlays come from: search, records, metadata, installation."""

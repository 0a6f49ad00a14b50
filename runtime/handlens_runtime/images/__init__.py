"""Pictures: decoding, tiling, normalizing."""

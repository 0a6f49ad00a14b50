"""Read what a checkpoint folder or file holds; no mathematics."""

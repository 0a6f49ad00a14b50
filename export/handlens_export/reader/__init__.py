"""The reference model that reads text in images: its data by construction, its training, its judge."""

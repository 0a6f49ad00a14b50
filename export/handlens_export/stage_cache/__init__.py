"""Finished stages of exports, kept on disk by the content of what made them."""

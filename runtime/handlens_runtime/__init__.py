"""What the phone does: manifest, images, chat, engine, backends; it never learns that the exporter exists."""

"""Image files as pixels: formats, decoding, colours, resizing."""

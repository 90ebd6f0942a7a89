"""Plain HTTP on the same port: health, figures, and the page."""

"""Plain HTTP on the same port: health, figures, and the page. Floor 4."""

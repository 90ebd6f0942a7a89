"""Parts of a result in words and as rows, for the terminal, pages and CI alike."""

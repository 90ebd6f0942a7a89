"""Statistics of a run: counts, times, integrity, and the checks of them."""

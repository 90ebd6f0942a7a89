"""How a run is shown and written: terminal, HTML, JSON, comparison."""

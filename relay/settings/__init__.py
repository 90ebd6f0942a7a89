"""The settings: their names and types, how they are loaded, and what is wrong with them."""

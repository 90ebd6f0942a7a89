"""Several worker processes behind one that accepts: `relay serve --workers N`."""

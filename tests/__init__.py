"""The tests of relay; a package so that its folders can share helpers."""

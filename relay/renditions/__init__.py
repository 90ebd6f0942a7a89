"""Smaller JPEG pictures made from JPEG pictures, in a process of their own."""

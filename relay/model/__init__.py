"""The values that several rooms share."""

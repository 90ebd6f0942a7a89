"""What phones send: the content of frames, and which frames of each picture."""

"""What is kept with alerts: the picture of their moment, and clips."""

"""Where alerts and stream events are delivered, and what is to be delivered there."""

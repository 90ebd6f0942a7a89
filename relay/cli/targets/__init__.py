"""`relay target` and `relay webhook`: where alerts and stream events are delivered."""

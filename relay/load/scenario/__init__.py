"""What a load test does: groups, stages and the schedule."""

"""The kinds of targets of the outbox, each an adapter (`delivery.TargetAdapter`)."""

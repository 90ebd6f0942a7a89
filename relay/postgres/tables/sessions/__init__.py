"""Better Auth's sessions and users."""

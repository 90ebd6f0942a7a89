"""Who somebody is, and what they may do: identities, permissions, and what changes them."""

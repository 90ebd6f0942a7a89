"""Pictures in several sizes: which of them a subscription gets."""

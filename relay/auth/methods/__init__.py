"""The ways in which a token proves who somebody is."""

"""The command line: every command of `relay`."""

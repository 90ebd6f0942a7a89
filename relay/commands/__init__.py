"""What relay does beside to serve; `relay/cli.py` puts it on the command line. Floor 6."""

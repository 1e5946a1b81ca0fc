"""Every way in: parses, calls down, answers."""

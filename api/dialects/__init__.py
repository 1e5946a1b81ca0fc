"""Other systems' wire formats, each translated to the same verbs."""

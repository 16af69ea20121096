"""Who may come in: origins, tokens, grants."""

"""Domain adapters: what turns text, series or sequences into tokens, losses and figures."""

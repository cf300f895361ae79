"""Every system on every task under one recipe: cells that can be stopped and gone on with, and tables."""

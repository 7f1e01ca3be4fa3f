"""A page about a run: its samples over time, its scores with their protocols, its prompts, its health, its options."""

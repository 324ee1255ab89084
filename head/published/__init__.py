"""Published methods on stored embeddings; each file says what was kept of its paper, and what changed."""

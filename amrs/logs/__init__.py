"""Session logs: what they hold, whether they are sound, who is tested, and the way from disk to tokens."""

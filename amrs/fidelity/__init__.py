"""How well a world model predicts held-out listeners, how far it may be believed, and what others predict."""

"""What demonstrations have in common: what they show, and clients that keep a server busy."""

"""Train one network on many processes without the backward lock."""

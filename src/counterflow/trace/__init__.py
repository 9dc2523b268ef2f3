"""Where the time of every rank went: spans, on one clock, as a file and as a picture."""

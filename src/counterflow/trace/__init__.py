"""Traces: the spans of all ranks on one clock, as a file for Perfetto and as a timeline picture."""

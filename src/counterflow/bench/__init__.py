"""Benchmarks: cases measured side by side on the engine that users run."""

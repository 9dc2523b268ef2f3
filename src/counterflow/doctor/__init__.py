"""Checks of a machine before a run: what each found, and what to do about it. Started by ``launch/doctor.py``."""

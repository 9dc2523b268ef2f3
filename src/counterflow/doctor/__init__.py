"""Machine diagnostics before a run: what each check measured, and what to do about it. Run by ``launch/doctor.py``."""

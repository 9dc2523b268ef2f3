"""What is compared with what, how, and how it is told. Everything here runs the engine that users run."""

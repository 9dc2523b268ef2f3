"""What a run tells a person and a file: records of every block, gathered on rank 0."""

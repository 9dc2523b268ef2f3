"""Report of finished runs: tables, plots, and the source of every number. It reads run directories alone."""
